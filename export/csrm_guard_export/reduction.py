"""Write the graph in fewer bits: int8 within what it may cost, or fp16."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csrm_guard.packing import collate, pack
from csrm_guard.rows import Row
from csrm_guard_export.batched import write_batched
from csrm_guard_export.nodes import can_split, quantizable
from csrm_guard_export.parity import AUROC_TOLERANCE, ParityError, compare_int8, golden
from csrm_guard_export.quantize import halve, quantize
from csrm_guard_export.ranges import Observed, observe
from csrm_guard_export.sensitivity import layers, sensitivity, worst_first
from csrm_guard_export.split import write_split
from csrm_guard_train.checkpoint import Trained

__all__ = ["observed", "to_fp16", "to_int8"]

Floats = NDArray[np.float64]
_OBSERVED = 256


def to_fp16(trained: Trained, exact: Path, target: Path) -> None:
    """Write the fp16 graph: several windows a run where the backbone allows it."""
    if can_split(trained.model):
        write_batched(trained.model, target, half=True)
    else:
        halve(exact, target)


def to_int8(
    trained: Trained,
    rows: Sequence[Row],
    graph: Path,
    target: Path,
    *,
    keep: Collection[str],
    exact: Sequence[Floats],
    score: Callable[[], list[Floats]],
    say: Callable[[str], None],
) -> tuple[list[Floats], dict[str, Any]]:
    """Write the int8 graph; return its logits and how they differ from fp32's.

    Layers stay in fp32, the worst first, until int8 costs no more AUROC than it may.

    Args:
        trained: the checkpoint.
        rows: its held-out rows.
        graph: in fp32.
        target: of the int8 graph.
        keep: patterns of layers that stay in fp32 in any case.
        exact: fp32 logits of each row's rules.
        score: returns the same from what is at `target`.
        say: told what is being done.

    Raises:
        ParityError: it costs too much even so.
    """
    say("quantizing")
    y = np.array([bool(row.label) for row in rows], np.float64)
    seen = observed(trained, rows) if can_split(trained.model) else None
    if seen is None and keep:
        raise ParityError("a traced graph keeps no layers in fp32; leave --keep out, or use --precision fp32")
    kept = list(keep)
    candidates: list[str] | None = None
    while True:
        if seen is None:
            quantize(graph, target)
        else:
            write_split(trained.model, target, seen, kept)
        logits = score()
        found = compare_int8(exact, logits, y)
        cost = found["auroc_drop"]
        if cost <= AUROC_TOLERANCE:
            return logits, {**found, "kept_in_fp32": kept}
        if candidates is None:
            say(f"WARNING: int8 costs {cost} AUROC, over {AUROC_TOLERANCE}; looking for the layers that it hurts")
            candidates = [] if seen is None else [p for p in _worst_layers(trained, rows, seen) if p not in kept]
        if not candidates:
            raise ParityError(f"int8 costs {cost} AUROC, over {AUROC_TOLERANCE}, whatever stays in fp32; use fp32")
        kept.append(candidates.pop(0))
        say(f"WARNING: {kept[-1]} stays in fp32")


def observed(trained: Trained, rows: Sequence[Row]) -> dict[str, Observed]:
    """Return what the linear layers are given on some of the rows."""
    some = golden(_some(rows), trained.encoder)
    return observe(trained.model, (collate([pack(window, rules)]) for window, rules in some))


def _worst_layers(trained: Trained, rows: Sequence[Row], seen: Mapping[str, Observed]) -> list[str]:
    wanted = layers(quantizable(trained.model))
    return worst_first(list(sensitivity(trained, _some(rows), seen, wanted=wanted)))


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    # Every n-th row: held-out rows stand in order of their source.
    return rows[:: max(len(rows) // _OBSERVED, 1)]
