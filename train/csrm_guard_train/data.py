"""Read the authored sets into frozen records and hold whole deployments out.

Formats: train/data/README.md. Splits go by deployment (and by category for ladders), never by
row, so that no held-out rule or setting has been trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from csrm_guard.errors import RowError
from csrm_guard.messages import Message, parse_messages
from csrm_guard.rows import read_jsonl
from csrm_guard_train.drill_words import Wordings
from csrm_guard_train.grids import Grid, read_grid
from csrm_guard_train.manners import Manners
from csrm_guard_train.talks import Talk, read_talk
from csrm_guard_train.twins import Twin, read_twin

__all__ = ["Authored", "Item", "Ladder", "Rung", "Transcript", "held_out", "read_authored"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """A minimal pair: one rule in several wordings, a message that keeps it and one that breaks it.

    Attributes:
        lenient: same topic; `violating` is fine under it.
        strict: same topic; even `compliant` breaks it.
        distractors: rules of the same deployment that neither message breaks.
        turned: whether `compliant` breaks the lenient wording, which then turns both labels over;
            None: nobody can tell.
    """

    id: str
    setting: str
    stage: str
    rule: str
    paraphrase: str
    lenient: str
    strict: str | None
    distractors: tuple[str, ...]
    compliant: tuple[Message, ...]
    violating: tuple[Message, ...]
    turned: bool | None = False


@dataclass(frozen=True, slots=True)
class Ladder:
    """One category's guidelines by strictness.

    Attributes:
        rungs: level (1 mildest .. 6 gravest) to what it holds, in words.
        guidelines: level from which a guideline forbids (1 strictest, 7 forbids nothing) to
            its wordings.
    """

    category: str
    rungs: Mapping[int, str]
    guidelines: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Rung:
    """A conversation whose last message sits at a level of a category; 0: near, no violation, perhaps a refusal."""

    id: str
    category: str
    level: int
    messages: tuple[Message, ...]
    refusal: bool = False


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation under a policy; `violated` rules are broken by any assistant turn."""

    id: str
    policy: str
    rules: Mapping[str, str]
    messages: tuple[Message, ...]
    violated: frozenset[str]


@dataclass(frozen=True, slots=True)
class Authored:
    """The authored sets, or a part of them.

    Attributes:
        wordings: other texts of built-in harm rules, by their id.
        drills: what a program puts grids together from.
        manners: openings that say nothing about labels.
    """

    items: tuple[Item, ...]
    ladders: Mapping[str, Ladder]
    rungs: tuple[Rung, ...]
    transcripts: tuple[Transcript, ...]
    grids: tuple[Grid, ...] = ()
    talks: tuple[Talk, ...] = ()
    twins: tuple[Twin, ...] = ()
    wordings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drills: Wordings | None = None
    manners: Manners | None = None

    def split(self, share: float, seed: int) -> tuple[Authored, Authored]:
        """Return (train, held out); whole deployments and whole categories move."""

        def parted(rows: Sequence[T], key: Callable[[T], str]) -> tuple[tuple[T, ...], tuple[T, ...]]:
            out = tuple(row for row in rows if held_out(key(row), share, seed))
            return tuple(row for row in rows if not held_out(key(row), share, seed)), out

        items = parted(self.items, lambda row: row.setting)
        rungs = parted(self.rungs, lambda row: row.category)
        transcripts = parted(self.transcripts, lambda row: row.policy)
        grids = parted(self.grids, lambda row: row.setting)
        talks = parted(self.talks, lambda row: row.setting)
        twins = parted(self.twins, lambda row: row.id)
        parts = zip(items, rungs, transcripts, grids, talks, twins, strict=True)
        train, out = (
            Authored(i, self.ladders, r, t, g, k, w, self.wordings, self.drills, self.manners)
            for i, r, t, g, k, w in parts
        )
        return train, out


def held_out(key: str, share: float, seed: int) -> bool:
    """Tell whether a deployment is held out; stable across runs, machines and added data."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def read_authored(folder: Path) -> Authored:
    """Read every `items*`, `ladders*`, `rungs*` and `transcripts*` file of a folder.

    Files `grids*`, `talks*`, `twins*`, `wordings*`, `drills.yaml` and `manners.yaml` may be absent.

    Raises:
        RowError: a missing set, a row with a missing field, or manners that are not as they should be; names file
            and place.
        DrillError: the drills' wordings are not as they should be; names file and place.
    """
    ladders = _read(folder, "ladders", _ladder)
    return Authored(
        items=_read(folder, "items", _item),
        ladders={ladder.category: ladder for ladder in ladders},
        rungs=_read(folder, "rungs", _rung),
        transcripts=_read(folder, "transcripts", _transcript),
        grids=_read(folder, "grids", read_grid, optional=True),
        talks=_read(folder, "talks", read_talk, optional=True),
        twins=_read(folder, "twins", read_twin, optional=True),
        wordings=dict(_read(folder, "wordings", lambda row: (row["category"], tuple(row["texts"])), optional=True)),
        drills=Wordings.from_file(drills) if (drills := folder / "drills.yaml").is_file() else None,
        manners=Manners.from_file(manners) if (manners := folder / "manners.yaml").is_file() else None,
    )


def _read(folder: Path, stem: str, build: Callable[[dict[str, Any]], T], *, optional: bool = False) -> tuple[T, ...]:
    files = sorted(folder.glob(f"{stem}*.jsonl*"))
    if not files and not optional:
        raise RowError(f"{folder}: no {stem}*.jsonl or {stem}*.jsonl.gz")
    found = []
    for path in files:
        for _, row in read_jsonl(path):
            try:
                found.append(build(row))
            except KeyError as exc:
                raise RowError(f"{path}: row {row.get('id', '?')!r}: no field {exc}") from exc
    return tuple(found)


def _item(row: dict[str, Any]) -> Item:
    stage, context = row["target"], row["context"]
    role = "user" if stage == "prompt" else "assistant"

    def conversation(text: str) -> tuple[Message, ...]:
        return parse_messages([*context, {"role": role, "content": text}])

    return Item(
        id=row["id"],
        setting=row["setting"],
        stage=stage,
        rule=row["rule"],
        paraphrase=row["paraphrase"],
        lenient=row["lenient_rule"],
        strict=row["strict_rule"],
        distractors=tuple(row["distractors"]),
        compliant=conversation(row["compliant"]),
        violating=conversation(row["violating"]),
        turned=row.get("lenient_broken_by_compliant", False),
    )


def _ladder(row: dict[str, Any]) -> Ladder:
    return Ladder(
        category=row["category"],
        rungs={rung["level"]: rung["description"] for rung in row["rungs"]},
        guidelines={g["disallow_from"]: tuple(g["texts"]) for g in row["guidelines"]},
    )


def _rung(row: dict[str, Any]) -> Rung:
    refusal = bool(row.get("refusal", False))
    return Rung(row["id"], row["category"], row["level"], parse_messages(row["messages"]), refusal)


def _transcript(row: dict[str, Any]) -> Transcript:
    return Transcript(
        id=row["id"],
        policy=row["policy_name"],
        rules={rule["id"]: rule["text"] for rule in row["rules"]},
        messages=parse_messages(row["messages"]),
        violated=frozenset(row["violated"]),
    )
