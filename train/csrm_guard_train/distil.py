"""Learn from a larger model: its logits on the student's own groups are soft labels (Hinton et al. 2015).

Teacher and student may have different tokenizers: each encodes the groups itself, and labels meet by their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from csrm_guard_train.batches import Encoded, encode, to_batch
from csrm_guard_train.checkpoint import Trained
from csrm_guard_train.engine import product_dtype

__all__ = ["Teacher", "soft"]


class Teacher:
    """A finished model that labels groups.

    Args:
        trained: the model; it is moved to `device` and kept in evaluation mode.
        device: where the student trains.
        precision: of its matrix products; None: as its recipe and the device have it.
    """

    def __init__(self, trained: Trained, device: torch.device, precision: torch.dtype | None = None) -> None:
        precision = precision or product_dtype(trained.recipe, device)
        self._model = trained.model.eval().to(device=device, dtype=precision)
        self._encoder, self._device = trained.encoder, device

    @torch.no_grad()
    def logits(self, rows: Sequence[Encoded]) -> Tensor:
        """Return a logit for each label of the groups (N,), in the order of `to_batch`.

        Labels of a group that does not fit the teacher are nan.
        """
        found: list[Tensor] = []
        for row in rows:
            mine = encode(row.group, self._encoder)
            if mine is None:
                count = sum(len(example.rules) for example in row.group.examples)
                found.append(torch.full((count,), float("nan"), device=self._device))
                continue
            batch = to_batch([mine]).to(self._device)
            raw = self._model(batch.ids, batch.blocks, batch.positions, batch.heads).float()
            found.append(batch.pooled(raw))
        return torch.cat(found)


def soft(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean cross-entropy of violation logits (N,) against the teacher's probabilities.

    Args:
        logits: the student's (N,).
        teacher: the teacher's (N,); nan where it has none, which counts for nothing.
    """
    known = ~teacher.isnan()
    target = torch.sigmoid(torch.where(known, teacher, torch.zeros_like(teacher)))
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)
