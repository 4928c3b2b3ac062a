"""What held-out rows say of a model while it trains: AUROC overall and by source, and orders within pairs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from csrm_guard.rows import Row
from csrm_guard_train.checkpoint import Trained
from csrm_guard_train.engine import product_dtype
from csrm_guard_train.metrics import auroc
from csrm_guard_train.model import RuleReader
from csrm_guard_train.predict import predict

__all__ = ["thin", "validate", "within_rules"]

# What tells the rows of one pair, rung, talk, grid or twin apart (`validation.py` names them).
_VARIANT = re.compile(
    r"-(compliant|violating|lenient|strict|under-\d|m\d(-kept)?|(alt|base)\d|harmful|harmless|complies|refuses|helps)$"
)


def thin(rows: Sequence[Row], most: int) -> list[Row]:
    """Return about `most` rows, spread evenly; the rows of a family (a pair, grid, talk or twin) stay together."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(_VARIANT.sub("", row.id), []).append(row)
    every = max(-(-len(rows) // most), 1)
    return [row for family in list(families.values())[::every] for row in family]


def validate(model: RuleReader, trained: Trained, rows: Sequence[Row]) -> dict[str, float]:
    """Return AUROCs of held-out rows by the largest rule logit, overall and by source."""
    if not rows:
        return {}
    model.eval()
    # As it trains: in fp32 the rows of a large held-out part take longer than the steps between.
    device = next(model.parameters()).device
    low = product_dtype(trained.recipe, device) == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        scores = predict(model, trained.encoder, rows)
    model.train()
    p = np.array([s.logits.max() for s in scores], np.float64)
    y = np.array([bool(row.label) for row in rows], np.float64)
    found = {"auroc": auroc(y, p)}
    parts: list[tuple[str, Callable[[Row], bool]]] = [
        ("items", lambda r: r.id.endswith(("-compliant", "-violating", "-lenient", "-strict"))),
        ("same_rule", lambda r: r.id.endswith(("-compliant", "-violating"))),
        ("rungs", lambda r: "-under-" in r.id),
        ("transcripts", lambda r: r.scope == "any assistant turn" and not re.search(r"-(alt|base)\d$", r.id)),
        ("talks", lambda r: re.search(r"-(alt|base)\d$", r.id) is not None),
        ("grids", lambda r: re.search(r"-m\d(-kept)?$", r.id) is not None),
        ("requests", lambda r: r.id.endswith(("-harmful", "-harmless"))),
        ("answers", lambda r: r.id.endswith(("-complies", "-refuses", "-helps"))),
    ]
    for name, belongs in parts:
        pick = np.array([belongs(row) for row in rows])
        if pick.any():
            found[f"auroc_{name}"] = auroc(y[pick], p[pick])
    found.update(_orders({row.id: float(v) for row, v in zip(rows, p, strict=True)}))
    cells = within_rules(rows, [s.logits for s in scores])
    if cells:
        found["grid_orders"] = float(np.mean(cells))
    return {k: round(v, 4) for k, v in found.items()}


def _orders(scores: dict[str, float]) -> dict[str, float]:
    """Return how often a minimal pair is in the right order, by what differs in it."""
    found = {}
    for more, less in (("violating", "compliant"), ("violating", "lenient"), ("strict", "compliant")):
        stems = [i.removesuffix(more) for i in scores if i.endswith(f"-{more}")]
        known = [scores[s + more] > scores[s + less] for s in stems if s + less in scores]
        if known:
            found[f"{more}_over_{less}"] = float(np.mean(known))
    return found


def within_rules(rows: Sequence[Row], logits: Sequence[NDArray[np.float32]]) -> list[bool]:
    """Return, for each rule of a grid and each two messages of which one breaks it, whether that one scores higher.

    Args:
        rows: those of grids end with `-mN`; others are passed over.
        logits: a row's violation logits in the order of its rules.
    """
    cells: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row, found in zip(rows, logits, strict=True):
        stem, _, _ = row.id.rpartition("-m")
        if re.search(r"-m\d$", row.id) and row.policy is not None:
            for rule, logit in zip(row.policy.rules, found, strict=True):
                cells[stem, rule.id][rule.id in (row.violated or ())].append(float(logit))
    return [more > less for kept, broken in cells.values() for more in broken for less in kept]
