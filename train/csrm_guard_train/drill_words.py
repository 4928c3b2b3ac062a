"""What drills are made of: sentences by meaning, read from `train/data/authored/drills.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from csrm_guard.documents import read_document
from csrm_guard.errors import CsrmGuardError

__all__ = ["Act", "Choice", "DrillError", "Fact", "Flag", "Lines", "Number", "Whatever", "Wordings"]

Lines: TypeAlias = tuple[str, ...]


class DrillError(CsrmGuardError):
    """The wordings of drills cannot be used; the message names the file and the place."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Act(_Document):
    """Something that a message does with a thing: sentences that do it, and `bare` forms for "do not ..."."""

    says: Lines
    bare: Lines


class Number(_Document):
    """Something that is counted: sentences that state it, its names, how a bound is written, and its range."""

    says: Lines
    noun: Lines
    unit: str
    range: tuple[int, int]


class Choice(_Document):
    """Something of which there are a few: sentences that state one, its names, and the values."""

    says: Lines
    noun: Lines
    values: Lines


class Fact(_Document):
    """Something that the user may have said: sentences for and against it, and conditions on it."""

    present: Lines = ()
    absent: Lines = ()
    when: Lines
    other: Lines


class Flag(_Document):
    """A formal feature of a message: its presence, its absence, and rules that ask for either."""

    present: Lines
    absent: Lines
    require: Lines
    forbid: Lines


class Whatever(_Document):
    """Whatever is done with a thing."""

    bare: Lines


class Wordings(_Document):
    """All sentences that drills are made of; see the file."""

    acts: Mapping[str, Act]
    close: tuple[frozenset[str], ...]
    denials: frozenset[str]
    negated: Lines
    wishes: Lines
    unwanted: Lines
    wish_forbid: Lines
    wish_require: Lines
    user_forbid: Lines
    user_require: Lines
    any: Whatever
    forbid: Lines
    require: Lines
    when: Lines
    unless: Lines
    forbid_bare: Lines
    require_bare: Lines
    also: Lines
    never_both: Lines
    before: Lines
    numbers: Mapping[str, Number]
    at_most: Lines
    at_least: Lines
    exactly: Lines
    choices: Mapping[str, Choice]
    only_one: Lines
    only_two: Lines
    not_one: Lines
    not_two: Lines
    facts: Mapping[str, Fact]
    acks: Lines
    openings: Lines
    fillers: tuple[tuple[str, str], ...]
    asks: Lines
    asked: Fact
    tails: Mapping[str, Flag]
    heads: Mapping[str, Flag]
    names: Lines
    things: Mapping[str, Lines]

    @classmethod
    def from_file(cls, path: Path) -> Wordings:
        """Read the wordings.

        Raises:
            DocumentError: unreadable.
            DrillError: a key is unknown or missing; the message names it.
        """
        try:
            return cls.model_validate(read_document(path))
        except ValidationError as exc:
            places = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()]
            raise DrillError("\n".join(places)) from exc

    def few(self, share: float) -> Wordings:
        """Return the first share of everything, at least three of a kind: fewer words to learn reading on.

        Args:
            share: over 0, at most 1; sentences within an act, a fact and so on are left alone.
        """
        kept: dict[str, Any] = {}
        for name, value in self:
            count = max(round(share * len(value)), 3) if isinstance(value, (Mapping, tuple)) else 0
            if isinstance(value, Mapping):
                kept[name] = dict(list(value.items())[:count])
            elif isinstance(value, tuple) and name != "close":
                kept[name] = value[:count]
        acts = frozenset(kept["acts"])
        kept["close"] = tuple(near for one in self.close if len(near := one & acts) > 1)
        kept["denials"] = self.denials & acts
        return self.model_copy(update=kept)
