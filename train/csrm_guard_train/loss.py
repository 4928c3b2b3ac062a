"""The objective: per-rule cross-entropy, a listwise term, and orders. Pure functions.

N is the number of (example, rule) labels of a batch, P the number of orders.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["classification", "listwise", "ordering"]


def classification(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean cross-entropy of violation logits (N,) (paper 3.3: L_cls).

    Args:
        logits: violation logits (N,).
        labels: 1 violated, 0 kept (N,).
        weights: trust in each label (N,); if all are 0 (orders only), so is the result.
    """
    each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (each * weights).sum() / weights.sum().clamp(min=1e-6)


def ordering(more: Tensor, less: Tensor, margin: float) -> Tensor:
    """Return the mean Bradley-Terry loss of P orders (paper 3.3: L_rm).

    With R the reward, R = -logit: softplus(-(R_lenient - R_strict - m)). The paper prints the
    strict and the lenient reward the other way round; that sign contradicts its own Figure 6.

    Args:
        more: violation logits (P,) of what is violated more (the stricter configuration).
        less: violation logits (P,) of what is violated less.
        margin: m.
    """
    return functional.softplus(-(more - less - margin)).mean()


def listwise(logits: Tensor, labels: Tensor, owners: Tensor, examples: int) -> Tensor:
    """Return how far the kept rules stand above the violated ones of the same example.

    For each violated rule: cross-entropy of picking it among itself and the kept rules.

    Args:
        logits: violation logits (N,).
        labels: 1 violated, 0 kept (N,).
        owners: example of each label (N,), int64 below `examples`.
        examples: how many examples there are.
    """
    kept = torch.where(labels > 0, torch.full_like(logits, -1e4), logits)
    table = torch.full((examples, logits.shape[0]), -1e4, dtype=logits.dtype, device=logits.device)
    table[owners, torch.arange(logits.shape[0], device=logits.device)] = kept
    rest = torch.logsumexp(table, dim=1)[owners]  # (N,)
    each = functional.softplus(rest - logits) * labels
    return each.sum() / labels.sum().clamp(min=1.0)
