"""Rules of drills: about an act, a number, a choice, a form, or two acts, maybe under a condition."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from csrm_guard_train.drill_words import Flag, Lines, Wordings

__all__ = ["FACTORS", "Clause", "Norm", "Said", "Scene", "capital", "norm_of", "norms"]

T = TypeVar("T")
# A bound stands near the number that a message states, and often is that number.
FACTORS = (0.4, 0.7, 0.9, 1.0, 1.0, 1.1, 1.5, 2.5)
_TRIES = 60


@dataclass(frozen=True, slots=True)
class Clause:
    """A sentence's meaning.

    Attributes:
        kind: `act` (it is done to a thing), `not` (the message says that it is not done), `number` or `choice`.
        name: of the act, number or choice.
        value: the thing, the number in digits, or the value.
    """

    kind: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Said:
    """A message's meaning: its clauses in order, and the formal flags that it has."""

    clauses: tuple[Clause, ...]
    flags: frozenset[str]


# A message's meaning -> whether it breaks the rule; None where a reader could argue.
Broken: TypeAlias = Callable[[Said], "bool | None"]


@dataclass(frozen=True, slots=True)
class Norm:
    """A rule: in full, as a part of a longer sentence, and what breaks it."""

    text: str
    part: str
    broken: Broken


@dataclass(slots=True)
class Scene:
    """What the messages and rules of one drill have in common.

    Attributes:
        words: the sentences.
        rng: the source of chance.
        name: of the user.
        things: what it may be about.
        asks: whether the judged message is the user's, who asks for acts.
        slots: per sentence of a message the meanings that it may have; None: it is left out.
        flags: formal features in which messages differ.
        holds: per condition that is true here its wordings.
        fails: per condition that is not true here its wordings.
    """

    words: Wordings
    rng: random.Random
    name: str
    things: Sequence[str]
    asks: bool = False
    slots: list[list[Clause | None]] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    holds: list[Lines] = field(default_factory=list)
    fails: list[Lines] = field(default_factory=list)

    def pick(self, lines: Sequence[T]) -> T:
        """Return one of several."""
        return self.rng.choice(lines)

    def flag(self, name: str) -> Flag:
        """Return a flag's wordings."""
        return self.words.tails.get(name) or self.words.heads[name]

    def clauses(self) -> list[Clause]:
        """Return every meaning that a message may hold."""
        return [clause for slot in self.slots for clause in slot if clause is not None]


def norms(scene: Scene, said: Sequence[Said], wanted: int) -> list[Norm]:
    """Return up to `wanted` rules of different wording that some of the messages break and others keep."""
    found: dict[str, Norm] = {}
    for _ in range(_TRIES):
        norm = norm_of(scene)
        verdicts = [norm.broken(one) for one in said]
        if None in verdicts or not 0 < sum(map(bool, verdicts)) < len(said):
            continue
        found.setdefault(norm.text, norm)
        if len(found) == wanted:
            break
    return list(found.values())


def norm_of(scene: Scene) -> Norm:
    """Return a rule about something that a message of the scene may hold; messages need not differ in it."""
    rng = scene.rng
    acts = [clause for clause in scene.clauses() if clause.kind == "act"]
    if scene.flags and rng.random() < 0.2:
        norm = _formal(scene, rng.choice(scene.flags))
    elif not scene.asks and len(set(acts)) > 1 and rng.random() < 0.15:
        norm = _double(scene, acts)
    else:
        norm = _about(scene, rng.choice(scene.clauses()))
    return _conditional(scene, norm) if rng.random() < 0.4 else norm


def _about(scene: Scene, clause: Clause) -> Norm:
    if clause.kind == "number":
        return _about_number(scene, clause)
    return _about_choice(scene, clause) if clause.kind == "choice" else _about_act(scene, clause)


def _conditional(scene: Scene, norm: Norm) -> Norm:
    """Return the norm under a condition that holds or fails."""
    true, unless = scene.rng.random() < 0.6, scene.rng.random() < 0.4
    condition = scene.pick(scene.pick(scene.holds if true else scene.fails))
    text = capital(scene.pick(scene.words.unless if unless else scene.words.when).format(c=condition, f=norm.part))
    return Norm(text, norm.part, norm.broken if true != unless else lambda said: False)


def _formal(scene: Scene, name: str) -> Norm:
    flag, wanted = scene.flag(name), scene.rng.random() < 0.5
    text = scene.pick(flag.require if wanted else flag.forbid)
    return Norm(text, _part(text), lambda said: (name in said.flags) != wanted)


def _about_act(scene: Scene, clause: Clause) -> Norm:
    """Return a rule that forbids or requires an act, or all talk of a thing."""
    words, wanted, whatever = scene.words, scene.rng.random() < 0.5, scene.rng.random() < 0.3
    bare = scene.pick(words.any.bare if whatever else words.acts[clause.name].bare).format(x=clause.value)
    if scene.asks and whatever:
        lines = words.user_require if wanted else words.user_forbid
    elif scene.asks:
        lines = words.wish_require if wanted else words.wish_forbid
    else:
        lines = words.require if wanted else words.forbid
    text = capital(scene.pick(lines).format(a=bare))
    part = _part(text)
    if not scene.asks:
        part = scene.pick(words.require_bare if wanted else words.forbid_bare).format(a=bare)

    def broken(said: Said) -> bool | None:
        if whatever:
            return any(c.value == clause.value for c in said.clauses) != wanted
        done = _done(words, said, clause)
        return None if done is None else done != wanted

    return Norm(text, part, broken)


def _done(words: Wordings, said: Said, clause: Clause) -> bool | None:
    """Whether a message does an act; None where it does one that comes close, or also says that it does not."""
    on_it = [c for c in said.clauses if c.value == clause.value]
    done = any(c.kind == "act" and c.name == clause.name for c in on_it)
    denied = any(c.kind == "not" and c.name == clause.name for c in on_it)
    if done:
        return None if denied else True
    others = {c.name for c in on_it if c.kind == "act"}
    # To say that one will not do a thing is much like turning it down.
    near = any(clause.name in group and others & group for group in words.close)
    refused = clause.name in words.denials and any(c.kind == "not" for c in on_it)
    return None if near or refused else False


def _about_number(scene: Scene, clause: Clause) -> Norm:
    words, number = scene.words, scene.words.numbers[clause.name]
    bound = max(round(int(clause.value) * scene.pick(FACTORS)), 1)
    form = scene.pick(("at_most", "at_most", "at_least", "at_least", "exactly"))
    lines: Lines = getattr(words, form)
    text = capital(scene.pick(lines).format(k=scene.pick(number.noun), u=number.unit.format(n=bound)))

    def broken(said: Said) -> bool | None:
        values = [int(c.value) for c in said.clauses if c.kind == "number" and c.name == clause.name]
        wrong = {"at_most": lambda v: v > bound, "at_least": lambda v: v < bound, "exactly": lambda v: v != bound}
        return any(wrong[form](v) for v in values)

    return Norm(text, _part(text), broken)


def _about_choice(scene: Scene, clause: Clause) -> Norm:
    words, choice = scene.words, scene.words.choices[clause.name]
    second = scene.pick([v for v in choice.values if v != clause.value])
    form = scene.pick(("only_one", "only_two", "not_one", "not_two"))
    lines: Lines = getattr(words, form)
    named = {clause.value, second} if form.endswith("two") else {clause.value}
    first, last = (clause.value, second) if scene.rng.random() < 0.5 or len(named) == 1 else (second, clause.value)
    text = capital(scene.pick(lines).format(v=first, w=last, k=scene.pick(choice.noun)))

    def broken(said: Said) -> bool | None:
        values = [c.value for c in said.clauses if c.kind == "choice" and c.name == clause.name]
        return any((v in named) == form.startswith("not") for v in values)

    return Norm(text, _part(text), broken)


def _double(scene: Scene, acts: Sequence[Clause]) -> Norm:
    """Return a rule on two acts: together, never together, or one before the other."""
    words = scene.words
    first, second = scene.pick([(a, b) for a in acts for b in acts if a != b])
    form = scene.pick(("also", "never_both", "before"))
    lines: Lines = getattr(words, form)
    names = [scene.pick(words.acts[c.name].bare).format(x=c.value) for c in (first, second)]
    text = capital(scene.pick(lines).format(a=names[0], b=names[1]))

    def broken(said: Said) -> bool | None:
        one, two = _done(words, said, first), _done(words, said, second)
        if one is None or two is None:
            return None
        if form == "also":
            return one and not two
        if form == "never_both":
            return one and two
        # What an order asks of a message that lacks one of the two could be argued.
        return said.clauses.index(first) > said.clauses.index(second) if one and two else None

    return Norm(text, _part(text), broken)


def _part(text: str) -> str:
    """Return a sentence as a part of a longer one."""
    return text[0].lower() + text[1:].removesuffix(".")


def capital(text: str) -> str:
    """Return a sentence with a capital at its start."""
    return text[0].upper() + text[1:]
