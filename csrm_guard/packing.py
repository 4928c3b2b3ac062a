"""Lay windows and rules out as the arrays that a graph reads.

Shapes: B sequences, T tokens (padded), R rules of a sequence (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csrm_guard.encoding import CONTEXT, FIRST_RULE, JUDGED, Window

__all__ = ["CONVERSATION_OFFSET", "PADDING", "Batch", "Packed", "collate", "pack", "split_rules"]

PADDING = -1
# Rules count their positions from 0, the conversation from here: a pretrained pair encoder
# has seen its second text behind a short first one.
CONVERSATION_OFFSET = 32


@dataclass(frozen=True, slots=True)
class Packed:
    """One sequence: a window and the rules behind it.

    Attributes:
        ids: token ids.
        blocks: per token 0 context, 1 judged, 2 + k rule k.
        positions: per token its position, counted from 0 in each rule.
        heads: per rule the index of its first token, where its logit is read.
    """

    ids: tuple[int, ...]
    blocks: tuple[int, ...]
    positions: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded sequences as int64 arrays: ids, blocks, positions (B, T) and heads (B, R)."""

    ids: NDArray[np.int64]
    blocks: NDArray[np.int64]
    positions: NDArray[np.int64]
    heads: NDArray[np.int64]


def pack(window: Window, rules: Sequence[tuple[int, ...]]) -> Packed:
    """Return the sequence in which the rules read one window."""
    conversation = (*window.context, *window.judged)
    ids = list(conversation)
    blocks = [CONTEXT] * len(window.context) + [JUDGED] * len(window.judged)
    positions = list(range(CONVERSATION_OFFSET, CONVERSATION_OFFSET + len(conversation)))
    heads = []
    for k, rule in enumerate(rules):
        heads.append(len(ids))
        ids.extend(rule)
        blocks.extend([FIRST_RULE + k] * len(rule))
        positions.extend(range(len(rule)))
    return Packed(tuple(ids), tuple(blocks), tuple(positions), tuple(heads))


def split_rules(rules: Sequence[tuple[int, ...]], *, room: int) -> list[tuple[int, int]]:
    """Return [start, stop) spans of rules, in order, that hold at most `room` tokens each.

    A rule that alone exceeds the room gets a span of its own.
    """
    spans: list[tuple[int, int]] = []
    start, used = 0, 0
    for i, rule in enumerate(rules):
        if i > start and used + len(rule) > room:
            spans.append((start, i))
            start, used = i, 0
        used += len(rule)
    if start < len(rules):
        spans.append((start, len(rules)))
    return spans


def collate(sequences: Sequence[Packed]) -> Batch:
    """Return the sequences padded to the longest; padded heads point at token 0."""
    length = max(len(s.ids) for s in sequences)
    rules = max(len(s.heads) for s in sequences)
    shape = (len(sequences), length)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    blocks = np.full(shape, PADDING, np.int64)
    heads = np.zeros((len(sequences), rules), np.int64)
    for row, s in enumerate(sequences):
        n = len(s.ids)
        ids[row, :n], blocks[row, :n], positions[row, :n] = s.ids, s.blocks, s.positions
        heads[row, : len(s.heads)] = s.heads
    return Batch(ids, blocks, positions, heads)
