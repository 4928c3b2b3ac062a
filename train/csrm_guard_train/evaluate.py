"""Evaluate a model directory on labelled rows: csrm-eval IN.jsonl OUT_DIR [--model DIR]."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from csrm_guard.errors import CsrmGuardError
from csrm_guard.model import RewardModel
from csrm_guard.onnx_model import OnnxRewardModel
from csrm_guard.rows import Row, parse_row, read_jsonl
from csrm_guard_train.data import Authored, read_authored
from csrm_guard_train.evaluation import EvaluationError, evaluate, score_rows
from csrm_guard_train.failures import by_field, worst
from csrm_guard_train.html import page
from csrm_guard_train.probes import Category, configurations, contradiction, flips, ladders, orders
from csrm_guard_train.selection import selected

app = typer.Typer(add_completion=False)

_COLUMNS = (
    "n", "prevalence", "f1_unsafe", "f1_safe", "f1_macro", "auroc", "auprc_unsafe", "auprc_safe",
    "ece_raw", "ece", "smece_raw", "smece", "brier",
)  # fmt: skip
_BY = ("n", "prevalence", "f1_macro", "auroc", "same_rule")


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Labelled rows with their policies.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Gets metrics, scores, table.md, report.html.")],
    model: Annotated[Path | None, typer.Option(help="A model directory; default: the shipped one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffled control and the bootstrap.")] = 0,
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 500,
    data: Annotated[Path | None, typer.Option(help="Folder of authored sets: their ladders are probed too.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Read so many rules of a policy, chosen by BM25.")] = None,
    by: Annotated[str | None, typer.Option(help="A field of the rows, such as kind: numbers for each value.")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="metrics.json of another model on these rows, for the frontier.")
    ] = None,
) -> None:
    """Score rows under their policy and under controls; write the numbers and a table."""
    try:
        data_rows = list(read_jsonl(source))
        rows: list[Row] = [parse_row(row, f"{source}:{line}") for line, row in data_rows]
        if most is not None:
            rows = [selected(row, most=most) if _long(row, most) else row for row in rows]
        others = [json.loads(path.read_text(encoding="utf-8")) for path in beside or ()]
        loaded = OnnxRewardModel.load(model) if model else OnnxRewardModel.default()
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("scoring", total=3 * len(rows))
            found = evaluate(
                rows,
                loaded,
                seed=seed,
                rounds=rounds,
                calibration=loaded.manifest.calibration,
                progress=lambda: progress.advance(bar),
            )
        found["probes"] = probe(rows, found["scores"], loaded, read_authored(data) if data else None, seed=seed)
        values = {row.id: str(raw.get(by or "", "")) for row, (_, raw) in zip(rows, data_rows, strict=True)}
        found.update(failures(rows, found["scores"], by, values))
    except (CsrmGuardError, EvaluationError, OSError, json.JSONDecodeError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    out.mkdir(parents=True, exist_ok=True)
    write(out, source.name, found, others)
    Console(width=200).print(_table(found))
    typer.echo(", ".join(str(out / name) for name in ("metrics.json", "table.md", "report.html")), err=True)


def failures(
    rows: Sequence[Row],
    scores: Sequence[dict[str, Any]],
    field: str | None = None,
    values: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return the worst rows and, if a field is given, the numbers for each of its values."""
    p = {row["id"]: row["p_unsafe"] for row in scores}
    found: dict[str, Any] = {"worst": worst(rows, p, {row["id"]: row["rules"] for row in scores})}
    if field and values is not None:
        found["by"] = {"field": field, "values": by_field(rows, p, values)}
    return found


def probe(
    rows: Sequence[Row],
    scores: Sequence[dict[str, Any]],
    model: RewardModel,
    authored: Authored | None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what the rows and the authored ladders allow to be probed, as objects for JSON.

    Args:
        rows: the evaluated rows.
        scores: theirs, so that they need not be scored again.
        model: scores the ladders.
        authored: holds the ladders, if they are wanted.
        seed: of the bootstrap.
    """
    known_p = {row["id"]: row["p_unsafe"] for row in scores}

    def kept(asked: Sequence[Row]) -> NDArray[np.float64]:
        return np.array([known_p[row.id] for row in asked], np.float64)

    def score(asked: Sequence[Row]) -> NDArray[np.float64]:
        return np.array([s.p_unsafe for s in score_rows(asked, model)], np.float64)

    found: dict[str, Any] = {name: asdict(part) for name, part in orders(rows, kept, seed=seed).items()}
    turned = flips(rows, kept, seed=seed)
    if turned.n:
        found["flips"] = asdict(turned)
    if authored is not None:
        known = authored.ladders
        categories = [Category(c, known[c].guidelines[3][0], known[c].guidelines[7][0]) for c in sorted(known)]
        # Each is scored under every configuration: a few of a category say enough.
        few = [r for c in sorted(known) for r in [r for r in authored.rungs if r.category == c and r.level >= 4][:5]]
        grave = [(Row(r.id, None, r.messages, None, True, None, "last message"), r.category) for r in few]
        found["configurations"] = asdict(configurations(grave, categories, score))
        found["contradiction"] = asdict(contradiction(grave, categories, score))
        found["ladders"] = asdict(ladders(known, authored.rungs[::4], score))
    return found


def _long(row: Row, most: int) -> bool:
    return row.policy is not None and sum(rule.stance != "permit" for rule in row.policy.rules) > most


def write(out: Path, title: str, found: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> None:
    """Write metrics.json, scores.jsonl, table.md and report.html to an existing folder."""
    numbers = {name: value for name, value in found.items() if name not in ("scores", "worst")}
    (out / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in found["scores"]]
    (out / "scores.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "table.md").write_text(markdown(found), encoding="utf-8")
    tables = [{"title": "Accuracy and controls", "head": ["", *_COLUMNS, "AUROC 95% CI"], "rows": _rows(found)}]
    if found.get("probes"):
        tables.append({"title": "Probes", "head": ["", "result"], "rows": _probe_rows(found["probes"])})
    if "by" in found:
        tables.append({"title": f"By {found['by']['field']}", "head": ["", *_BY], "rows": _by_rows(found["by"])})
    if found.get("worst"):
        rows = [
            [_number(value) if isinstance(value, float) else value for value in row.values()] for row in found["worst"]
        ]
        tables.append({"title": "Worst rows", "head": list(found["worst"][0]), "rows": rows})
    (out / "report.html").write_text(page(title, found, tables, beside), encoding="utf-8")


def markdown(found: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = ["| | " + " | ".join((*_COLUMNS, "AUROC 95% CI")) + " |", "|" + "---|" * (len(_COLUMNS) + 2)]
    lines += ["| " + " | ".join(cells) + " |" for cells in _rows(found)]
    rules = found["rules"]
    lines += [
        "",
        f"Model {found['model']}, seed {found['seed']}. Single rules: AUROC {_number(rules['auroc'])} over "
        f"{int(rules['n'])} (row, rule) pairs; the highest rule of an unsafe row is a violated one in "
        f"{_number(rules['top_rule_accuracy'])}.",
    ]
    if found.get("probes"):
        lines += ["", "| probe | result |", "|---|---|"]
        lines += [f"| {name} | {result} |" for name, result in _probe_rows(found["probes"])]
    if "by" in found:
        lines += ["", f"| {found['by']['field']} | " + " | ".join(_BY) + " |", "|" + "---|" * (len(_BY) + 1)]
        lines += ["| " + " | ".join(cells) + " |" for cells in _by_rows(found["by"])]
    return "\n".join(lines) + "\n"


def _by_rows(by: dict[str, Any]) -> list[list[str]]:
    return [[value or "(none)", *(_number(numbers[name]) for name in _BY)] for value, numbers in by["values"].items()]


def _probe_rows(probes: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [[name, ", ".join(f"{key} {_shown(value)}" for key, value in part.items())] for name, part in probes.items()]


def _shown(value: float | Sequence[float]) -> str:
    if isinstance(value, Sequence):
        return "-".join(_shown(part) for part in value)
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _rows(found: dict[str, Any]) -> list[list[str]]:
    named = [
        ("real policy", found["real"]),
        ("policy-blind", found["policy_blind"]),
        ("shuffled policy", found["shuffled_policy"]),
        ("always unsafe", found["constant"]["always_unsafe"]),
        ("always safe", found["constant"]["always_safe"]),
        *((f"TF-IDF of {reads}", report) for reads, report in found["tfidf"].items()),
    ]
    table = []
    for name, report in named:
        interval = report.get("auroc_ci95")
        cells = [_number(report.get(column, math.nan)) for column in _COLUMNS]
        table.append([name, *cells, f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else ""])
    return table


def _table(found: dict[str, Any]) -> Table:
    table = Table("", *_COLUMNS, "AUROC 95% CI", title=found["model"])
    for cells in _rows(found):
        table.add_row(*cells)
    return table


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) and value > 1 else f"{value:.3f}"


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
