"""Grids: alternative last messages under the same rules, every cell labelled; their groups."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from csrm_guard.messages import Message, parse_messages
from csrm_guard_train.groups import Example, Group, LabelledRule, orders_within

__all__ = ["Grid", "grid_group", "read_grid"]

# The rules of a grid have to be read; the others only have to be passed over.
_READ, _PASSED = 1.5, 0.4


@dataclass(frozen=True, slots=True)
class Grid:
    """Conversations that differ in their last message only, under the same rules; every cell is labelled.

    Attributes:
        views: each ends with one of the alternative messages.
        broken: per view the indices of the rules that it breaks.
        unclear: (view, rule) on which two readers did not agree; no label.
    """

    id: str
    setting: str
    stage: str
    rules: tuple[str, ...]
    views: tuple[tuple[Message, ...], ...]
    broken: tuple[frozenset[int], ...]
    unclear: frozenset[tuple[int, int]] = frozenset()


def read_grid(row: dict[str, Any]) -> Grid:
    """Return a grid from a row of its file; KeyError: a field is missing."""
    role = "user" if row["target"] == "prompt" else "assistant"
    return Grid(
        id=row["id"],
        setting=row["setting"],
        stage=row["target"],
        rules=tuple(rule["text"] for rule in row["rules"]),
        views=tuple(parse_messages([*row["context"], {"role": role, "content": text}]) for text in row["messages"]),
        broken=tuple(frozenset(indices) for indices in row["broken"]),
        unclear=frozenset((view, rule) for view, rule in row.get("unclear", ())),
    )


def grid_group(grid: Grid, foreign: Sequence[str], rng: random.Random) -> Group:
    """Return a grid's conversations with its rules in random order, the same for all.

    Neither a message nor a rule alone tells a label: each rule is broken by some of the messages and kept by others.

    Args:
        grid: the conversations and their labels.
        foreign: rules of other deployments, which all conversations keep.
        rng: decides the order of the rules.
    """
    order = list(range(len(grid.rules)))
    rng.shuffle(order)
    passed = tuple(LabelledRule(text, False, f"{grid.id}/foreign", (), _PASSED) for text in foreign)

    def labelled(view: int) -> tuple[LabelledRule, ...]:
        weights = [0.0 if (view, i) in grid.unclear else _READ for i in order]
        own = zip(order, weights, strict=True)
        return (
            *(LabelledRule(grid.rules[i], i in grid.broken[view], f"{grid.id}/{i}", (), w) for i, w in own),
            *passed,
        )

    examples = tuple(Example((messages,), labelled(view)) for view, messages in enumerate(grid.views))
    return Group(grid.id, examples, orders_within(examples))
