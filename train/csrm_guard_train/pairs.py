"""Pairs of guideline texts that Algorithm 1 kept: as files, and as training data."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from csrm_guard.errors import RowError
from csrm_guard.rows import read_jsonl
from csrm_guard_train.groups import Example, Group, LabelledRule, Order
from csrm_guard_train.labellers import (
    Conversation,
    StrictnessError,
)

__all__ = ["Labelled", "StrictPair", "pair_groups", "read_pairs", "write_pairs"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation's labels under a pair; `known`: both follow from its annotation."""

    conversation: str
    strict: bool
    lenient: bool
    known: bool


@dataclass(frozen=True, slots=True)
class StrictPair:
    """Two texts of which the first is stricter, and the conversations of the pool under both.

    Attributes:
        bound, k, n: of the test that passed by the least.
        origin: data set, licence and labellers.
    """

    id: str
    category: str
    strict_text: str
    lenient_text: str
    labels: tuple[Labelled, ...]
    bound: float
    k: int
    n: int
    origin: str


def pair_groups(
    pairs: Sequence[StrictPair], conversations: Iterable[Conversation], *, most: int | None = None, seed: int = 0
) -> list[Group]:
    """Return a group per pair and conversation: both texts as rules, the strict one violated more.

    A conversation whose labels contradict the order (unsafe only under the lenient text) is left out there.

    Args:
        pairs: what Algorithm 1 kept.
        conversations: at least those that the pairs name.
        most: at most so many groups per conversation, drawn by seed; default: all.
        seed: decides this and which rule stands first, so that place says nothing.

    Raises:
        StrictnessError: a pair names a conversation that is not given.
    """
    by_id = {c.id: c for c in conversations}
    rng = random.Random(seed)
    uses = [(pair, row) for pair in pairs for row in pair.labels if row.strict or not row.lenient]
    rng.shuffle(uses)
    counts: dict[str, int] = {}
    groups = []
    for pair, row in uses:
        if row.conversation not in by_id:
            raise StrictnessError(f"{pair.id}: conversation {row.conversation!r} is not among those given")
        counts[row.conversation] = counts.get(row.conversation, 0) + 1
        if most is None or counts[row.conversation] <= most:
            groups.append(_group(pair, row, by_id[row.conversation], strict_first=rng.random() < 0.5))
    return sorted(groups, key=lambda group: group.id)


def _group(pair: StrictPair, row: Labelled, conversation: Conversation, *, strict_first: bool) -> Group:
    # A label that a classifier filled in counts half of one that a person gave.
    weight = 1.0 if row.known else 0.5
    origin = f"{pair.id}/{conversation.id} ({pair.origin})"
    strict = LabelledRule(pair.strict_text, row.strict, f"{origin}/strict", (), weight)
    lenient = LabelledRule(pair.lenient_text, row.lenient, f"{origin}/lenient", (), weight)
    rules = (strict, lenient) if strict_first else (lenient, strict)
    order = Order((0, rules.index(strict)), (0, rules.index(lenient)))
    return Group(f"{pair.id}/{conversation.id}", (Example((conversation.messages,), rules),), (order,))


def write_pairs(path: Path, pairs: Iterable[StrictPair]) -> None:
    """Write one pair per line."""
    lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
    path.write_text("".join(lines), encoding="utf-8")


def read_pairs(path: Path) -> tuple[StrictPair, ...]:
    """Return the pairs of a file that `write_pairs` wrote.

    Raises:
        RowError: a line is not such a pair; names file and line.
    """
    pairs = []
    for line, row in read_jsonl(path):
        try:
            labels = tuple(Labelled(**label) for label in row.pop("labels"))
            pairs.append(StrictPair(**row, labels=labels))
        except (KeyError, TypeError) as exc:
            raise RowError(f"{path}:{line}: not a strict pair ({exc}); write it again by csrm-strictness") from exc
    return tuple(pairs)
