"""Turn a checkpoint into a model directory: csrm-export CHECKPOINT OUT."""

from __future__ import annotations

import json
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from csrm_guard_export.build import Precision, build
from csrm_guard_export.parity import ParityError
from csrm_guard_train.checkpoint import CheckpointError

app = typer.Typer(add_completion=False)


class Width(str, Enum):
    """Of the weights."""

    int8 = "int8"
    fp16 = "fp16"
    fp32 = "fp32"


_PRECISIONS: dict[Width, Precision] = {Width.int8: "int8", Width.fp16: "fp16", Width.fp32: "fp32"}


class Method(str, Enum):
    """Of calibration; `auto` takes the one with the smallest cross-fitted Brier score."""

    auto = "auto"
    temperature = "temperature"
    platt = "platt"
    isotonic = "isotonic"


@app.command()
def run(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    name: Annotated[str, typer.Option(help="What the model is called.")] = "csrm-default",
    precision: Annotated[Width, typer.Option(help="Of the weights; fp16 for GPUs.")] = Width.int8,
    calibration: Annotated[Method, typer.Option(help="The curve from logits to probabilities.")] = Method.platt,
    by_stage: Annotated[bool, typer.Option(help="A curve for each stage with enough held-out rows.")] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Leave in fp32, such as 'encoder.layer.0.*'; may come several times."),
    ] = None,
) -> None:
    """Export, prove parity, calibrate; print what was measured."""
    began = time.monotonic()
    try:
        manifest = build(
            checkpoint,
            out,
            name=name,
            precision=_PRECISIONS[precision],
            method=calibration.value,
            by_stage=by_stage,
            keep=keep or (),
            say=lambda line: typer.echo(line, err=True),
        )
    except (CheckpointError, ParityError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    typer.echo(
        json.dumps(
            {"id": manifest.id, "parity": manifest.parity, "calibration": manifest.card["calibration"]}, indent=2
        )
    )
    typer.echo(f"{out}: {time.monotonic() - began:.0f} s", err=True)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
