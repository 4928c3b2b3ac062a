"""Drills: grids that a program puts together, so that there is no end of them and every label is certain.

What authored grids ask in real language, drills ask in simple sentences: who does what with which thing, how many, on
which condition, in which order. A model that has learnt to compare a rule with a message on drills, where nothing can
be learnt by heart, has less to learn from the authored rows. Wordings are data: `train/data/authored/drills.yaml`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from csrm_guard.documents import read_document
from csrm_guard.errors import CsrmGuardError
from csrm_guard.messages import Message
from csrm_guard_train.grids import Grid

__all__ = ["DrillError", "Wordings", "drill"]

T = TypeVar("T")
Lines = tuple[str, ...]
_MESSAGES, _RULES = 4, (4, 5)
_FACTORS = (0.4, 0.7, 0.9, 1.0, 1.0, 1.1, 1.5, 2.5)


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


class Any(_Document):
    """Whatever is done with a thing."""

    bare: Lines


class Wordings(_Document):
    """All sentences that drills are made of; see the file."""

    acts: Mapping[str, Act]
    close: tuple[frozenset[str], ...]
    any: Any
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


@dataclass(frozen=True, slots=True)
class _Clause:
    """A sentence's meaning: an act on a thing, a number, or a choice."""

    kind: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class _Said:
    """A message's meaning: its clauses in order, and the flags that it has."""

    clauses: tuple[_Clause, ...]
    flags: frozenset[str]


# A message's meaning -> whether it breaks the rule; None where a reader could argue.
_Broken = Callable[[_Said], "bool | None"]


@dataclass(frozen=True, slots=True)
class _Norm:
    """A rule: in full, as a part of a longer sentence, and what breaks it."""

    text: str
    part: str
    broken: _Broken


@dataclass(slots=True)
class _Scene:
    """What a drill's messages and rules have in common."""

    words: Wordings
    rng: random.Random
    name: str
    things: Sequence[str]
    slots: list[list[_Clause | None]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    # conditions with their truth: sentences that hold, sentences that do not
    holds: list[Lines] = field(default_factory=list)
    fails: list[Lines] = field(default_factory=list)

    def pick(self, lines: Sequence[T]) -> T:
        return self.rng.choice(lines)

    def flag(self, name: str) -> Flag:
        return self.words.tails.get(name) or self.words.heads[name]


def drill(words: Wordings, rng: random.Random, number: int) -> Grid:
    """Return one grid: four near-twin messages under four or five rules, each broken by some and kept by others.

    Args:
        words: the sentences.
        rng: decides everything.
        number: for the grid's id.
    """
    while True:
        domain = rng.choice(sorted(words.things))
        scene = _Scene(words, rng, rng.choice(words.names), rng.sample(words.things[domain], 4))
        context = _context(scene)
        for _ in range(rng.choice((2, 3, 3, 4))):
            scene.slots.append(_slot(scene))
        scene.flags = rng.sample(sorted({*words.tails, *words.heads}), rng.choice((0, 1, 1, 2)))
        said = _messages(scene)
        rules = _rules(scene, said)
        if len(rules) < _RULES[0]:
            continue
        sentences: dict[_Clause, str] = {}
        texts = [_text(scene, one, sentences) for one in said]
        if len(set(texts)) < _MESSAGES:
            continue
        return Grid(
            id=f"drill-{number}", setting=domain, stage="response",
            rules=tuple(norm.text for norm in rules),
            views=tuple((*context, Message("assistant", text)) for text in texts),
            broken=tuple(frozenset(i for i, norm in enumerate(rules) if norm.broken(one)) for one in said),
        )  # fmt: skip


def _context(scene: _Scene) -> tuple[Message, ...]:
    """Return what came before; note which conditions it makes true."""
    words, rng = scene.words, scene.rng
    lines: list[str] = []
    for name in rng.sample(sorted(words.facts), min(rng.choice((0, 1, 1, 2)), len(words.facts))):
        fact, true = words.facts[name], rng.random() < 0.5
        lines.append(rng.choice(fact.present if true else fact.absent))
        scene.holds.append(fact.when if true else fact.other)
        scene.fails.append(fact.other if true else fact.when)
    asked, other = scene.things[:2]
    question = rng.choice(words.asks).format(x=asked)
    scene.holds.append(tuple(c.format(x=asked) for c in words.asked.when))
    scene.fails.append(tuple(c.format(x=asked) for c in words.asked.other))
    if rng.random() < 0.5:
        scene.holds.append(tuple(c.format(x=other) for c in words.asked.other))
        scene.fails.append(tuple(c.format(x=other) for c in words.asked.when))
    if lines and rng.random() < 0.4:
        return (
            Message("user", " ".join([f"Hi, {scene.name} here.", *lines])),
            Message("assistant", "Thanks, noted. What can I do?"),
            Message("user", question),
        )
    rng.shuffle(lines)
    return (Message("user", " ".join([*lines, question, f"My name is {scene.name}."])),)


def _slot(scene: _Scene) -> list[_Clause | None]:
    """Return two or three alternatives for one sentence, near to one another."""
    words, rng = scene.words, scene.rng
    kind = rng.choice(("act", "act", "act", "number", "choice"))
    taken = {c.name for slot in scene.slots for c in slot if c is not None and c.kind != "act"}
    if kind == "number" and (free := sorted(set(words.numbers) - taken)):
        name = rng.choice(free)
        low, high = words.numbers[name].range
        first = rng.randint(low, high)
        values = {first, *(min(max(round(first * f), low), high) for f in rng.sample(_FACTORS, 3))}
        return [_Clause("number", name, str(v)) for v in sorted(values)]
    if kind == "choice" and (free := sorted(set(words.choices) - taken)):
        name = rng.choice(free)
        return [_Clause("choice", name, v) for v in rng.sample(words.choices[name].values, rng.choice((2, 3)))]
    act, thing = rng.choice(sorted(words.acts)), rng.choice(scene.things)
    one = _Clause("act", act, thing)
    form = rng.random()
    if form < 0.35:
        return [one, _Clause("act", act, rng.choice([t for t in scene.things if t != thing]))]
    if form < 0.7:
        return [one, _Clause("act", rng.choice(sorted(set(words.acts) - {act})), thing)]
    return [one, None]


def _messages(scene: _Scene) -> list[_Said]:
    """Return the meanings of the messages: each slot filled, each flag up or down."""
    rng = scene.rng
    columns = []
    for slot in scene.slots:
        column = [slot[i % len(slot)] for i in range(_MESSAGES)]
        rng.shuffle(column)
        columns.append(column)
    raised = {name: rng.sample(range(_MESSAGES), rng.choice((1, 2, 3))) for name in scene.flags}
    turned = rng.sample(range(_MESSAGES), 2) if len(scene.slots) > 1 and rng.random() < 0.4 else []
    found = []
    for i in range(_MESSAGES):
        clauses = [column[i] for column in columns]
        if i in turned:
            clauses = [clauses[1], clauses[0], *clauses[2:]]
        flags = frozenset(name for name, up in raised.items() if i in up)
        found.append(_Said(tuple(dict.fromkeys(c for c in clauses if c is not None)), flags))
    return found


def _text(scene: _Scene, said: _Said, sentences: dict[_Clause, str]) -> str:
    """Return a message's text; mostly the same sentence for the same meaning, as twins have it."""
    rng, words = scene.rng, scene.words
    heads = [scene.flag(n) for n in scene.flags if n in words.heads]
    tails = [scene.flag(n) for n in scene.flags if n in words.tails]
    up = {id(scene.flag(n)) for n in said.flags}
    parts = [rng.choice(f.present if id(f) in up else f.absent).format(name=scene.name) for f in heads]
    for clause in said.clauses:
        if clause not in sentences or rng.random() < 0.3:
            sentences[clause] = _sentence(scene, clause)
        parts.append(sentences[clause])
    parts += [rng.choice(f.present if id(f) in up else f.absent) for f in tails]
    return " ".join(parts) or "Right."


def _sentence(scene: _Scene, clause: _Clause) -> str:
    words = scene.words
    if clause.kind == "act":
        return _capital(scene.pick(words.acts[clause.name].says).format(x=clause.value))
    if clause.kind == "number":
        return scene.pick(words.numbers[clause.name].says).format(n=clause.value)
    return _capital(scene.pick(words.choices[clause.name].says).format(v=clause.value))


def _rules(scene: _Scene, said: Sequence[_Said]) -> list[_Norm]:
    """Return rules that some messages break and others keep, of different wording."""
    rng = scene.rng
    found: dict[str, _Norm] = {}
    wanted = rng.choice(_RULES)
    for _ in range(60):
        norm = _norm(scene)
        verdicts = [norm.broken(one) for one in said]
        if None in verdicts or not 0 < sum(map(bool, verdicts)) < _MESSAGES:
            continue
        found.setdefault(norm.text, norm)
        if len(found) == wanted:
            break
    return list(found.values())


def _norm(scene: _Scene) -> _Norm:
    """Return a rule about something that some message says, maybe under a condition."""
    rng = scene.rng
    if scene.flags and rng.random() < 0.2:
        norm = _formal(scene, rng.choice(scene.flags))
    elif len(scene.slots) > 1 and rng.random() < 0.15:
        norm = _double(scene)
    else:
        clause = rng.choice([c for slot in scene.slots for c in slot if c is not None])
        norm = {"act": _about_act, "number": _about_number, "choice": _about_choice}[clause.kind](scene, clause)
    return _conditional(scene, norm) if rng.random() < 0.4 else norm


def _conditional(scene: _Scene, norm: _Norm) -> _Norm:
    """Return the norm under a condition that holds or fails."""
    rng, words = scene.rng, scene.words
    true = rng.random() < 0.6
    condition = scene.pick(scene.pick(scene.holds if true else scene.fails))
    unless = rng.random() < 0.4
    text = _capital(scene.pick(words.unless if unless else words.when).format(c=condition, f=norm.part))
    if true != unless:
        return _Norm(text, norm.part, norm.broken)
    return _Norm(text, norm.part, lambda said: False)


def _formal(scene: _Scene, name: str) -> _Norm:
    flag, wanted = scene.flag(name), scene.rng.random() < 0.5
    text = scene.pick(flag.require if wanted else flag.forbid)
    return _Norm(text, _part(text), lambda said: (name in said.flags) != wanted)


def _about_act(scene: _Scene, clause: _Clause) -> _Norm:
    """Return a rule that forbids or requires an act, or all talk of a thing."""
    words, wanted = scene.words, scene.rng.random() < 0.5
    if scene.rng.random() < 0.3:
        bare = scene.pick(words.any.bare).format(x=clause.value)

        def broken(said: _Said) -> bool | None:
            return any(c.value == clause.value for c in said.clauses) != wanted
    else:
        bare = scene.pick(words.acts[clause.name].bare).format(x=clause.value)

        def broken(said: _Said) -> bool | None:
            done = _done(words, said, clause)
            return None if done is None else done != wanted

    full = scene.pick(words.require if wanted else words.forbid).format(a=bare)
    part = scene.pick(words.require_bare if wanted else words.forbid_bare).format(a=bare)
    return _Norm(full, part, broken)


def _done(words: Wordings, said: _Said, clause: _Clause) -> bool | None:
    """Whether a message does an act; None where it does one that comes close."""
    if clause in said.clauses:
        return True
    others = {c.name for c in said.clauses if c.kind == "act" and c.value == clause.value}
    near = any(clause.name in group and others & group for group in words.close)
    return None if near else False


def _about_number(scene: _Scene, clause: _Clause) -> _Norm:
    words, number = scene.words, scene.words.numbers[clause.name]
    bound = max(round(int(clause.value) * scene.pick(_FACTORS)), 1)
    form = scene.pick(("at_most", "at_most", "at_least", "at_least", "exactly"))
    lines: Lines = getattr(words, form)
    text = _capital(scene.pick(lines).format(k=scene.pick(number.noun), u=number.unit.format(n=bound)))

    def broken(said: _Said) -> bool | None:
        values = [int(c.value) for c in said.clauses if c.kind == "number" and c.name == clause.name]
        wrong = {"at_most": lambda v: v > bound, "at_least": lambda v: v < bound, "exactly": lambda v: v != bound}
        return any(wrong[form](v) for v in values)

    return _Norm(text, _part(text), broken)


def _about_choice(scene: _Scene, clause: _Clause) -> _Norm:
    words, choice = scene.words, scene.words.choices[clause.name]
    second = scene.pick([v for v in choice.values if v != clause.value])
    form = scene.pick(("only_one", "only_two", "not_one", "not_two"))
    lines: Lines = getattr(words, form)
    named = {clause.value, second} if form.endswith("two") else {clause.value}
    first, last = (clause.value, second) if scene.rng.random() < 0.5 or len(named) == 1 else (second, clause.value)
    text = _capital(scene.pick(lines).format(v=first, w=last, k=scene.pick(choice.noun)))

    def broken(said: _Said) -> bool | None:
        values = [c.value for c in said.clauses if c.kind == "choice" and c.name == clause.name]
        return any((v in named) == form.startswith("not") for v in values)

    return _Norm(text, _part(text), broken)


def _double(scene: _Scene) -> _Norm:
    """Return a rule on two acts: together, never together, or one before the other."""
    words, acts = scene.words, [c for slot in scene.slots for c in slot if c is not None and c.kind == "act"]
    pairs = [(a, b) for a in acts for b in acts if a.value != b.value or a.name != b.name]
    if not pairs:
        return _formal(scene, scene.pick(scene.flags)) if scene.flags else _about_act_of(scene)
    first, second = scene.pick(pairs)
    form = scene.pick(("also", "never_both", "before"))
    lines: Lines = getattr(words, form)
    names = [scene.pick(words.acts[c.name].bare).format(x=c.value) for c in (first, second)]
    text = _capital(scene.pick(lines).format(a=names[0], b=names[1]))

    def broken(said: _Said) -> bool | None:
        one, two = _done(words, said, first), _done(words, said, second)
        if one is None or two is None:
            return None
        if form == "also":
            return one and not two
        if form == "never_both":
            return one and two
        # What an order asks of a message that lacks one of the two could be argued.
        return said.clauses.index(first) > said.clauses.index(second) if one and two else None

    return _Norm(text, _part(text), broken)


def _about_act_of(scene: _Scene) -> _Norm:
    clause = scene.pick([c for slot in scene.slots for c in slot if c is not None])
    return {"act": _about_act, "number": _about_number, "choice": _about_choice}[clause.kind](scene, clause)


def _part(text: str) -> str:
    """Return a sentence as a part of a longer one."""
    return text[0].lower() + text[1:].removesuffix(".")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
