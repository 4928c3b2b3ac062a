"""One self-contained HTML page about an evaluation: tables, reliability, histograms, policies, frontier."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["page"]

Floats = NDArray[np.float64]
# Policies beyond this many would be bars too thin to read; the page says how many are left out.
_MOST_POLICIES = 40

_PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: pre-wrap; min-width: 24rem; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #555; }
</style></head><body>
<h1>{{ title }}</h1>
<p>Model {{ model }}, seed {{ seed }}. p is the calibrated probability that a row is unsafe.</p>
{% for table in tables %}<h2>{{ table.title }}</h2>
<table><thead><tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr>{% for cell in row -%}
<td{% if cell | length > 60 %} class="text"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endfor %}{% for plot in plots %}<figure>{{ plot.svg | safe }}<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}</body></html>
""",
    autoescape=True,
)


def page(
    title: str, found: Mapping[str, Any], tables: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the page.

    Args:
        title: of the page.
        found: what `evaluate` returned.
        tables: each with `title`, `head` (cells) and `rows` (lists of cells).
        beside: results of other models on the same rows, for the frontier.
    """
    scores = found["scores"]
    y = np.array([row["label"] == "unsafe" for row in scores], np.float64)
    p = np.array([row["p_unsafe"] for row in scores], np.float64)
    raw = np.array([row["p_raw"] for row in scores], np.float64)
    bars = _policies(found["policies"])
    plots = [
        {
            "svg": _draw(lambda axes: _reliability(axes, y, raw, p)),
            "caption": "Reliability: share of unsafe rows in bins of equal mass; on the diagonal p means what it says.",
        },
        {"svg": _draw(lambda axes: _histogram(axes, y, p)), "caption": "Scores by label."},
        {
            "svg": _draw(lambda axes: _bars(axes, bars), height=1.5 + 0.22 * len(bars)),
            "caption": f"Accuracy at p = .5 per policy, worst first; {len(bars)} of {len(found['policies'])} policies.",
        },
        {
            "svg": _draw(lambda axes: _frontier(axes, [found, *beside])),
            "caption": "AUROC against the time of one check on this machine; up and left is better.",
        },
    ]
    text: str = _PAGE.render(title=title, model=found["model"], seed=found["seed"], tables=tables, plots=plots)
    return text


def _draw(paint: Callable[[Axes], None], *, height: float = 4.0) -> str:
    """Return a figure as SVG text."""
    figure = Figure(figsize=(7.0, height), layout="constrained")
    paint(figure.subplots())
    target = io.StringIO()
    # Text stays text and ids are stable, so that equal results give equal pages.
    with matplotlib.rc_context({"svg.hashsalt": "csrm-guard", "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :]


def _reliability(axes: Axes, y: Floats, raw: Floats, p: Floats) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, values, colour in (("before calibration", raw, "tab:orange"), ("calibrated", p, "tab:blue")):
        bins = np.array_split(np.argsort(values, kind="stable"), min(15, len(values)))
        means = [values[part].mean() for part in bins]
        axes.plot(means, [y[part].mean() for part in bins], marker="o", markersize=4, color=colour, label=name)
    axes.set(xlabel="p", ylabel="share unsafe", xlim=(0, 1), ylim=(0, 1))
    axes.legend()


def _histogram(axes: Axes, y: Floats, p: Floats) -> None:
    edges = np.linspace(0, 1, 31).tolist()
    axes.hist([p[y == 0], p[y == 1]], bins=edges, label=["safe", "unsafe"], color=["tab:green", "tab:red"])
    axes.set(xlabel="p", ylabel="rows")
    axes.legend()


def _policies(policies: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float, int]]:
    """Return (name, accuracy, rows) of the largest policies, worst last, so that it is drawn on top."""
    largest = sorted(policies.items(), key=lambda item: -item[1]["n"])[:_MOST_POLICIES]
    found = [(name or "(unnamed)", report["accuracy"], int(report["n"])) for name, report in largest]
    return sorted(found, key=lambda bar: -bar[1])


def _bars(axes: Axes, bars: Sequence[tuple[str, float, int]]) -> None:
    axes.barh([f"{name[:40]} ({n})" for name, _, n in bars], [accuracy for _, accuracy, _ in bars], color="tab:blue")
    axes.axvline(0.5, color="0.5", linewidth=1)
    axes.set(xlabel="accuracy at p = .5", xlim=(0, 1))
    axes.tick_params(axis="y", labelsize=8)


def _frontier(axes: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    for result in results:
        at = result["ms_per_check"], result["real"]["auroc"]
        axes.scatter(*at)
        axes.annotate(str(result["model"]), at, textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(xlabel="milliseconds a check", ylabel="AUROC")
    axes.margins(0.3)
