"""Examples: conversations with labelled rules, in groups that meet in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csrm_guard.messages import Message

__all__ = ["Example", "Group", "LabelledRule", "Order", "orders_within"]


@dataclass(frozen=True, slots=True)
class LabelledRule:
    """A rule as the model reads it, with its label for one conversation.

    Attributes:
        text: the rendered rule.
        violated: whether the conversation breaks it.
        origin: where the label comes from, so that a wrong one can be traced.
        permits: permissions shown with the rule.
        weight: how much the label counts: trust in it, and how hard it is to come by.
    """

    text: str
    violated: bool
    origin: str
    permits: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation and rules. With several views, a rule is broken if any view breaks it.

    Attributes:
        views: conversations whose last message is judged.
        rules: each with its label.
        unsafe: whether any rule is broken, where that is known though the single labels are not.
    """

    views: tuple[tuple[Message, ...], ...]
    rules: tuple[LabelledRule, ...]
    unsafe: bool | None = None

    @property
    def verdict(self) -> bool | None:
        """Whether any rule is broken; None if a label that nobody trusts leaves it open."""
        if self.unsafe is not None:
            return self.unsafe
        if any(rule.violated and rule.weight > 0 for rule in self.rules):
            return True
        return None if any(rule.weight == 0 for rule in self.rules) else False


@dataclass(frozen=True, slots=True)
class Order:
    """Rule `more[1]` of example `more[0]` is violated more than `less` (same indices)."""

    more: tuple[int, int]
    less: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Group:
    """Examples that must meet in one batch, and the orders between them."""

    id: str
    examples: tuple[Example, ...]
    orders: tuple[Order, ...] = ()


def orders_within(examples: Sequence[Example]) -> tuple[Order, ...]:
    """Return, for each rule, the orders between the examples that break it and those that keep it.

    Args:
        examples: all under the same rules in the same order; a label without weight takes part in no order.
    """
    return tuple(
        Order((more, at), (less, at))
        for at, columns in enumerate(zip(*(example.rules for example in examples), strict=True))
        for more, breaks in enumerate(columns)
        for less, keeps in enumerate(columns)
        if breaks.violated and not keeps.violated and breaks.weight > 0 and keeps.weight > 0
    )
