"""Talks: whole conversations that keep a policy, with turns rewritten so that they break it; their groups."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from csrm_guard.messages import Message, parse_messages
from csrm_guard_train.groups import Example, Group, LabelledRule, orders_within

__all__ = ["Alternative", "Talk", "read_talk", "talk_groups", "whole_talk"]

# A rule that some turn of the talk breaks has to be read; the others are kept all along.
_READ, _KEPT, _PASSED = 1.5, 0.6, 0.4


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another text of one turn.

    Attributes:
        turn: index of the message that it replaces.
        text: what the assistant says instead.
        broken: indices of the rules that it breaks.
    """

    turn: int
    text: str
    broken: frozenset[int]


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation in which no assistant turn breaks a rule, and alternatives that do."""

    id: str
    setting: str
    rules: tuple[str, ...]
    messages: tuple[Message, ...]
    alternatives: tuple[Alternative, ...]

    def view(self, turn: int, text: str | None = None) -> tuple[Message, ...]:
        """Return the conversation up to a turn, with another text of it if one is given."""
        last = self.messages[turn] if text is None else Message("assistant", text)
        return (*self.messages[:turn], last)

    @property
    def turns(self) -> tuple[int, ...]:
        """Indices of the assistant's messages."""
        return tuple(i for i, message in enumerate(self.messages) if message.role == "assistant")


def read_talk(row: dict[str, Any]) -> Talk:
    """Return a talk from a row of its file; KeyError: a field is missing."""
    return Talk(
        id=row["id"],
        setting=row["setting"],
        rules=tuple(row["rules"]),
        messages=parse_messages(row["messages"]),
        alternatives=tuple(Alternative(a["turn"], a["content"], frozenset(a["broken"])) for a in row["alternatives"]),
    )


def talk_groups(talk: Talk, foreign: Sequence[str], rng: random.Random, *, most: int = 6) -> list[Group]:
    """Return one group per assistant turn: its text and its alternatives under the policy's rules.

    Args:
        talk: the conversation.
        foreign: rules of other deployments, which all turns keep.
        rng: decides which rules are shown in which order.
        most: rules of the policy shown with one turn, those that it could break first.
    """
    return [_turn(talk, turn, foreign, rng, most) for turn in talk.turns]


def whole_talk(talk: Talk, rng: random.Random) -> Group:
    """Return the conversation as it is and with one turn rewritten, every assistant turn judged, under all rules.

    What is learnt from turns one by one says little about the largest of many: here the most suspect rule and turn of a
    conversation that keeps its policy is what the policy's own term pushes down.

    Args:
        talk: the conversation.
        rng: decides which turn is rewritten and the order of the rules.
    """
    other = rng.choice(talk.alternatives)
    order = rng.sample(range(len(talk.rules)), k=len(talk.rules))
    name = f"{talk.id}/whole"

    def example(messages: tuple[Message, ...], broken: frozenset[int]) -> Example:
        rules = tuple(LabelledRule(talk.rules[i], i in broken, f"{name}/{i}") for i in order)
        return Example(tuple(messages[: turn + 1] for turn in talk.turns), rules)

    rewritten = (*talk.view(other.turn, other.text), *talk.messages[other.turn + 1 :])
    examples = (example(talk.messages, frozenset()), example(rewritten, other.broken))
    return Group(name, examples, orders_within(examples))


def _turn(talk: Talk, turn: int, foreign: Sequence[str], rng: random.Random, most: int) -> Group:
    others = [a for a in talk.alternatives if a.turn == turn]
    risky = {i for a in others for i in a.broken}
    safe = [i for i in range(len(talk.rules)) if i not in risky]
    order = [*risky, *rng.sample(safe, k=min(max(most - len(risky), 0), len(safe)))]
    rng.shuffle(order)
    name = f"{talk.id}/{turn}"
    passed = tuple(LabelledRule(text, False, f"{name}/foreign", (), _PASSED) for text in foreign)
    variants: list[tuple[tuple[Message, ...], frozenset[int]]] = [(talk.view(turn), frozenset())]
    variants += [(talk.view(turn, a.text), a.broken) for a in others]

    def labelled(broken: frozenset[int]) -> tuple[LabelledRule, ...]:
        weights = [_READ if i in risky else _KEPT for i in order]
        own = zip(order, weights, strict=True)
        return (*(LabelledRule(talk.rules[i], i in broken, f"{name}/{i}", (), w) for i, w in own), *passed)

    examples = tuple(Example((view,), labelled(broken)) for view, broken in variants)
    return Group(name, examples, orders_within(examples))
