"""Score rows with the torch model: raw violation logits, before any calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from csrm_guard.encoding import Encoder
from csrm_guard.packing import Packed, collate, pack, split_rules
from csrm_guard.policy import Policy
from csrm_guard.rows import Row, views
from csrm_guard.template import render_rule
from csrm_guard_train.model import RuleReader

__all__ = ["Scores", "predict"]


@dataclass(frozen=True, slots=True)
class Scores:
    """A row's violation logits, in the order of its policy's forbidding and requiring rules.

    Attributes:
        logits: float32 (R,), the largest over views, windows and chunks.
        rules: ids of these rules.
    """

    logits: NDArray[np.float32]
    rules: tuple[str, ...]


def predict(model: RuleReader, encoder: Encoder, rows: Sequence[Row], *, batch_tokens: int = 8192) -> list[Scores]:
    """Return the scores of each row, in order; rows must carry a policy."""
    sequences: list[tuple[int, tuple[int, ...], Packed]] = []
    names = []
    for index, row in enumerate(rows):
        assert row.policy is not None, row.id
        owners, chunks = _chunks(row.policy, encoder)
        names.append(tuple(r.id for r in row.policy.rules if r.stance != "permit"))
        for view in views(row.messages, row.scope):
            for window in encoder.conversation(view).windows:
                room = encoder.limits.sequence - len(window.context) - len(window.judged)
                for start, stop in split_rules(chunks, room=room):
                    sequences.append((index, tuple(owners[start:stop]), pack(window, chunks[start:stop])))
    best = [np.full(len(n), -np.inf, np.float32) for n in names]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][2].ids))
    at = 0
    while at < len(order):
        count = max(1, batch_tokens // len(sequences[order[min(at + 31, len(order) - 1)]][2].ids))
        part = [sequences[i] for i in order[at : at + count]]
        for (index, owners_, _), logits in zip(part, _forward(model, [s for _, _, s in part]), strict=True):
            for owner, logit in zip(owners_, logits, strict=False):
                best[index][owner] = max(best[index][owner], logit)
        at += count
    return [Scores(logits, rules) for logits, rules in zip(best, names, strict=True)]


def _chunks(policy: Policy, encoder: Encoder) -> tuple[list[int], list[tuple[int, ...]]]:
    permits = [r.text for r in policy.rules if r.stance == "permit"]
    owners, chunks = [], []
    norms = [r for r in policy.rules if r.stance != "permit"]
    for owner, rule in enumerate(norms):
        # Evaluation rows have few permissions: the first alternative holds them all.
        for chunk in encoder.rule(render_rule(rule), permits)[0]:
            owners.append(owner)
            chunks.append(chunk)
    return owners, chunks


@torch.no_grad()
def _forward(model: RuleReader, sequences: Sequence[Packed]) -> NDArray[np.float32]:
    b = collate(sequences)
    device = next(model.parameters()).device
    tensors = [torch.from_numpy(a).to(device) for a in (b.ids, b.blocks, b.positions, b.heads)]
    logits: NDArray[np.float32] = model(*tensors).float().cpu().numpy()
    return logits
