"""Encode groups and lay them out as batches of about equal size.

N labels, P orders of a batch; a label's logit is the largest over its example's views.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from csrm_guard.encoding import Encoder
from csrm_guard.packing import Packed, collate, pack, split_rules
from csrm_guard_train.groups import Example, Group

__all__ = ["Encoded", "TrainBatch", "batches", "encode", "to_batch"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A group as sequences.

    Attributes:
        group: where it comes from.
        sequences: per example its views and windows, each with all rules, or in parts if the rules
            do not fit one sequence: view by view, part by part.
        parts: per example the [start, stop) spans of its rules.
    """

    group: Group
    sequences: tuple[tuple[Packed, ...], ...]
    parts: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(s.ids) for views in self.sequences for s in views)

    @property
    def count(self) -> int:
        """Number of sequences."""
        return sum(len(views) for views in self.sequences)


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Tensors of one batch.

    Attributes:
        ids, blocks, positions: (B, T).
        heads: (B, R).
        slots: (N, V): flat index b * R + r of each view of a label; padded by repetition.
        labels, weights: float (N,).
        owners: example of each label, int64 (N,).
        examples: how many examples.
        more, less: label indices of each order, int64 (P,).
        bags: (M, K): label indices of the examples whose verdict is known; padded by repetition.
        verdicts: whether any of an example's rules is broken, float (M,).
    """

    ids: Tensor
    blocks: Tensor
    positions: Tensor
    heads: Tensor
    slots: Tensor
    labels: Tensor
    weights: Tensor
    owners: Tensor
    examples: int
    more: Tensor
    less: Tensor
    bags: Tensor
    verdicts: Tensor

    def to(self, device: torch.device) -> TrainBatch:
        """Return the batch on a device."""
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            found[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return TrainBatch(**found)

    def pooled(self, logits: Tensor) -> Tensor:
        """Return the labels' logits (N,) from the model's (B, R): the largest over views."""
        return logits.reshape(-1)[self.slots].amax(dim=1)


def encode(group: Group, encoder: Encoder) -> Encoded | None:
    """Return the group as sequences, or None if a rule or sequence exceeds the model's limits."""
    sequences, parts = [], []
    for example in group.examples:
        views, spans = _views(example, encoder) or ((), ())
        if not views or max(len(s.ids) for s in views) > encoder.limits.sequence:
            return None
        sequences.append(views)
        parts.append(spans)
    return Encoded(group, tuple(sequences), tuple(parts))


def _views(example: Example, encoder: Encoder) -> tuple[tuple[Packed, ...], tuple[tuple[int, int], ...]] | None:
    rules = []
    for rule in example.rules:
        alternatives = encoder.rule(rule.text, rule.permits)
        if len(alternatives) != 1 or len(alternatives[0]) != 1:
            return None
        rules.append(alternatives[0][0])
    windows = [w for view in example.views for w in encoder.conversation(view).windows]
    room = encoder.limits.sequence - max(len(w.context) + len(w.judged) for w in windows)
    spans = tuple(split_rules(rules, room=room))
    return tuple(pack(window, rules[start:stop]) for window in windows for start, stop in spans), spans


def batches(rows: Sequence[Encoded], *, tokens: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Yield lists of groups of like length whose padded size stays near `tokens`, in random order."""
    pool = sorted(rows, key=lambda row: (row.longest, rng.random()))
    parts: list[list[Encoded]] = []
    part: list[Encoded] = []
    for row in pool:
        size = row.longest * (sum(r.count for r in part) + row.count)
        if part and size > tokens:
            parts.append(part)
            part = []
        part.append(row)
    if part:
        parts.append(part)
    rng.shuffle(parts)
    yield from parts


def to_batch(rows: Sequence[Encoded]) -> TrainBatch:
    """Return the tensors of some groups."""
    flat = [s for row in rows for views in row.sequences for s in views]
    arrays = collate(flat)
    width = arrays.heads.shape[1]
    slots: list[list[int]] = []
    labels: list[float] = []
    weights: list[float] = []
    owners: list[int] = []
    more: list[int] = []
    less: list[int] = []
    bags: list[list[int]] = []
    verdicts: list[float] = []
    sequence = example = 0
    for row in rows:
        first: list[int] = []
        for views, spans, source in zip(row.sequences, row.parts, row.group.examples, strict=True):
            first.append(len(labels))
            if source.verdict is not None:
                bags.append([len(labels) + r for r in range(len(source.rules))])
                verdicts.append(float(source.verdict))
            at = [(k, r - start) for k, (start, stop) in enumerate(spans) for r in range(start, stop)]
            for rule, (part, head) in zip(source.rules, at, strict=True):
                slots.append([(sequence + v + part) * width + head for v in range(0, len(views), len(spans))])
                labels.append(float(rule.violated))
                weights.append(rule.weight)
                owners.append(example)
            sequence += len(views)
            example += 1
        more += [first[o.more[0]] + o.more[1] for o in row.group.orders]
        less += [first[o.less[0]] + o.less[1] for o in row.group.orders]
    deepest, widest = max(len(s) for s in slots), max((len(b) for b in bags), default=1)
    return TrainBatch(
        ids=torch.from_numpy(arrays.ids),
        blocks=torch.from_numpy(arrays.blocks),
        positions=torch.from_numpy(arrays.positions),
        heads=torch.from_numpy(arrays.heads),
        slots=torch.tensor([s + s[:1] * (deepest - len(s)) for s in slots]),
        labels=torch.tensor(labels),
        weights=torch.tensor(weights),
        owners=torch.tensor(owners),
        examples=example,
        more=torch.tensor(more, dtype=torch.long),
        less=torch.tensor(less, dtype=torch.long),
        bags=torch.tensor([b + b[:1] * (widest - len(b)) for b in bags], dtype=torch.long),
        verdicts=torch.tensor(verdicts),
    )
