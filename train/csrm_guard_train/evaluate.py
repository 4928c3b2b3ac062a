"""Evaluate a model directory on labelled rows: csrm-eval IN.jsonl OUT_DIR [--model DIR]."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from csrm_guard.errors import CsrmGuardError
from csrm_guard.onnx_model import OnnxRewardModel
from csrm_guard.rows import Row, parse_row, read_jsonl
from csrm_guard_train.evaluation import EvaluationError, evaluate
from csrm_guard_train.html import page

app = typer.Typer(add_completion=False)

_COLUMNS = (
    "n", "prevalence", "f1_unsafe", "f1_safe", "f1_macro", "auroc", "auprc_unsafe", "auprc_safe",
    "ece_raw", "ece", "smece_raw", "smece", "brier",
)  # fmt: skip


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Labelled rows with their policies.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Gets metrics, scores, table.md, report.html.")],
    model: Annotated[Path | None, typer.Option(help="A model directory; default: the shipped one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffled control and the bootstrap.")] = 0,
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 500,
    beside: Annotated[
        list[Path] | None, typer.Option(help="metrics.json of another model on these rows, for the frontier.")
    ] = None,
) -> None:
    """Score rows under their policy and under controls; write the numbers and a table."""
    try:
        rows: list[Row] = [parse_row(row, f"{source}:{line}") for line, row in read_jsonl(source)]
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
    except (CsrmGuardError, EvaluationError, OSError, json.JSONDecodeError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    out.mkdir(parents=True, exist_ok=True)
    write(out, source.name, found, others)
    Console(width=200).print(_table(found))
    typer.echo(", ".join(str(out / name) for name in ("metrics.json", "table.md", "report.html")), err=True)


def write(out: Path, title: str, found: dict[str, Any], beside: Sequence[dict[str, Any]] = ()) -> None:
    """Write metrics.json, scores.jsonl, table.md and report.html to an existing folder."""
    numbers = {name: value for name, value in found.items() if name != "scores"}
    (out / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    lines = [json.dumps(row) + "\n" for row in found["scores"]]
    (out / "scores.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "table.md").write_text(markdown(found), encoding="utf-8")
    table = {"title": "Accuracy and controls", "head": ["", *_COLUMNS, "AUROC 95% CI"], "rows": _rows(found)}
    (out / "report.html").write_text(page(title, found, [table], beside), encoding="utf-8")


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
    return "\n".join(lines) + "\n"


def _rows(found: dict[str, Any]) -> list[list[str]]:
    named = [
        ("real policy", found["real"]),
        ("policy-blind", found["policy_blind"]),
        ("shuffled policy", found["shuffled_policy"]),
        ("always unsafe", found["constant"]["always_unsafe"]),
        ("always safe", found["constant"]["always_safe"]),
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
