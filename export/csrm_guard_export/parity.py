"""Measure how far the graphs are from the torch model on golden inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from csrm_guard.encoding import Encoder, Window
from csrm_guard.graphs import Graph
from csrm_guard.packing import collate, pack
from csrm_guard.rows import Row, views
from csrm_guard.template import render_rule
from csrm_guard_export.onnx import INPUTS
from csrm_guard_train.metrics import auroc
from csrm_guard_train.model import RuleReader

__all__ = [
    "AUROC_TOLERANCE",
    "FP16_TOLERANCE",
    "FP32_TOLERANCE",
    "Golden",
    "ParityError",
    "compare_int8",
    "golden",
    "require_fp16",
    "require_fp32",
]

FP32_TOLERANCE = 1e-4  # of logits
FP16_TOLERANCE = 1e-2  # of q
AUROC_TOLERANCE = 0.005  # that int8 may cost
Golden: TypeAlias = tuple[Window, list[tuple[int, ...]]]


class ParityError(Exception):
    """A graph does not score as its checkpoint does; nothing is shipped."""


def golden(rows: Sequence[Row], encoder: Encoder) -> list[Golden]:
    """Return windows with rules, made from rows with their policies."""
    found = []
    for row in rows:
        assert row.policy is not None, row.id
        view = views(row.messages, row.scope)[-1]
        window = encoder.conversation(view).windows[0]
        found.append((window, [encoder.rule(render_rule(rule))[0][0] for rule in row.policy.rules]))
    return found


def require_fp32(model: RuleReader, graph: Graph, inputs: Sequence[Golden]) -> float:
    """Return the largest logit difference between torch and the fp32 graph.

    Raises:
        ParityError: it exceeds `FP32_TOLERANCE`.
    """
    worst = 0.0
    for window, rules in inputs:
        batch = collate([pack(window, rules)])
        with torch.no_grad():
            ours = model(*(torch.from_numpy(getattr(batch, name)) for name in INPUTS)).numpy()[0]
        worst = max(worst, float(np.abs(ours - graph.read(window, rules)).max()))
    if worst > FP32_TOLERANCE:
        raise ParityError(f"the graph's logits differ by {worst:.2e} from torch, over {FP32_TOLERANCE:.0e}")
    return worst


def require_fp16(exact: Sequence[NDArray[np.float64]], half: Sequence[NDArray[np.float64]]) -> float:
    """Return the largest difference of q between the fp32 and the fp16 graph.

    Args:
        exact: calibrated q of each row's rules.
        half: the same from the fp16 graph.

    Raises:
        ParityError: it exceeds `FP16_TOLERANCE`.
    """
    worst = float(np.abs(np.concatenate(list(exact)) - np.concatenate(list(half))).max())
    if not worst <= FP16_TOLERANCE:
        raise ParityError(f"the fp16 graph's q differ by {worst:.2e} from fp32, over {FP16_TOLERANCE:.0e}; use fp32")
    return worst


def compare_int8(
    exact: Sequence[NDArray[np.float64]], int8: Sequence[NDArray[np.float64]], y: NDArray[np.float64]
) -> dict[str, Any]:
    """Return how int8 differs: logits, verdicts at a common boundary, AUROC.

    Args:
        exact: fp32 logits of each row's rules.
        int8: the same from the int8 graph.
        y: 1 unsafe, 0 safe, per row.
    """
    a, b = np.concatenate(list(exact)), np.concatenate(list(int8))
    top_a, top_b = np.array([z.max() for z in exact]), np.array([z.max() for z in int8])
    # Each graph is calibrated for itself, so verdicts are compared at each one's own median.
    agree = (top_a > np.median(top_a)) == (top_b > np.median(top_b))
    return {
        "rows": len(y),
        "mean_abs_logit_difference": round(float(np.abs(a - b).mean()), 4),
        "max_abs_logit_difference": round(float(np.abs(a - b).max()), 4),
        "verdict_agreement": round(float(agree.mean()), 4),
        "auroc_fp32": round(auroc(y, top_a), 4),
        "auroc_int8": round(auroc(y, top_b), 4),
        "auroc_drop": round(auroc(y, top_a) - auroc(y, top_b), 4),
    }
