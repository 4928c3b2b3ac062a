"""Groups of a grid: each alternative message under the same rules, and the orders within each rule."""

from __future__ import annotations

import random
from collections.abc import Sequence

from csrm_guard_train.data import Grid
from csrm_guard_train.groups import Example, Group, LabelledRule, Order

__all__ = ["grid_group"]

# The rules of a grid have to be read; the others only have to be passed over.
_READ, _PASSED = 1.5, 0.4


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
    examples = tuple(
        Example(
            (view,),
            (*(LabelledRule(grid.rules[i], i in broken, f"{grid.id}/{i}", (), _READ) for i in order), *passed),
        )
        for view, broken in zip(grid.views, grid.broken, strict=True)
    )
    orders = tuple(
        Order((more, at), (less, at))
        for at, i in enumerate(order)
        for more, breaks in enumerate(grid.broken)
        for less, keeps in enumerate(grid.broken)
        if i in breaks and i not in keeps
    )
    return Group(grid.id, examples, orders)
