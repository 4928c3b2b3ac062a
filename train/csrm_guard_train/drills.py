"""Drills: grids and talks that a program puts together, so that there is no end of them and every label is certain.

What authored grids ask in real language, drills ask in simple sentences: who does what with which thing, how many, on
which condition, in which order. A model that has learnt to compare a rule with a message on drills, where nothing can
be learnt by heart, has less to learn from the authored rows. Wordings are data: `train/data/authored/drills.yaml`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from csrm_guard.messages import Message
from csrm_guard_train.drill_rules import FACTORS, Clause, Norm, Said, Scene, capital, norm_of, norms
from csrm_guard_train.drill_words import Wordings
from csrm_guard_train.grids import Grid
from csrm_guard_train.talks import Alternative, Talk

__all__ = ["drill", "drill_talk"]

_MESSAGES, _RULES = 4, (4, 5)
_TURNS, _POLICY, _TRIES = (2, 3, 3, 4), (6, 9), 200
# Of a talk's rules: how many another text breaks at most, and how many none breaks.
_MOST, _IDLE = 2, 3


def drill(words: Wordings, rng: random.Random, number: int) -> Grid:
    """Return one grid: four near-twin messages under four or five rules, each broken by some and kept by others.

    Args:
        words: the sentences.
        rng: decides everything.
        number: for the grid's id.
    """
    while True:
        domain, scene = _scene(words, rng, asks=rng.random() < 0.15)
        context = _context(scene)
        _fill(scene)
        said = _messages(scene)
        rules = norms(scene, said, rng.choice(_RULES))
        sentences: dict[Clause, str] = {}
        texts = [_text(scene, one, sentences) for one in said]
        if len(rules) < _RULES[0] or len(set(texts)) < _MESSAGES:
            continue
        return Grid(
            id=f"drill-{number}", setting=domain, stage="prompt" if scene.asks else "response",
            rules=tuple(norm.text for norm in rules),
            views=tuple((*context, Message("user" if scene.asks else "assistant", text)) for text in texts),
            broken=tuple(frozenset(i for i, norm in enumerate(rules) if norm.broken(one)) for one in said),
        )  # fmt: skip


def drill_talk(words: Wordings, rng: random.Random, number: int) -> Talk:
    """Return a conversation of some turns that keeps six to nine rules, with turns rewritten so that they break some.

    Args:
        words: the sentences.
        rng: decides everything.
        number: for the talk's id.
    """
    while True:
        domain, scene = _scene(words, rng, asks=False)
        messages = list(_context(scene, single=True))
        kept = frozenset(name for name in scene.flags if rng.random() < 0.5)
        turns = [_turn(scene, kept) for _ in range(rng.choice(_TURNS))]
        rules = _policy(scene, turns, rng.randint(*_POLICY))
        alternatives = []
        follow_ups = iter(rng.sample(words.fillers, min(len(turns) - 1, len(words.fillers))))
        for turn in turns:
            broken = frozenset(i for i, norm in enumerate(rules) if norm.broken(turn.other))
            if broken and turn.texts[0] != turn.texts[1]:
                alternatives.append(Alternative(len(messages), turn.texts[1], broken))
            messages.append(Message("assistant", turn.texts[0]))
            if turn is not turns[-1]:
                messages.append(Message("user", next(follow_ups, ("Go on.", ""))[0]))
        if len(rules) < _POLICY[0] or not alternatives:
            continue
        return Talk(f"drill-talk-{number}", domain, tuple(n.text for n in rules), tuple(messages), tuple(alternatives))


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn of a talk: what could be said in it, what is, what else might be, and the texts of the last two."""

    slots: list[list[Clause | None]]
    said: Said
    other: Said
    texts: tuple[str, str]


def _turn(scene: Scene, kept: frozenset[str]) -> _Turn:
    scene.slots = []
    _fill(scene)
    said, other = scene.rng.sample(_messages(scene), 2)
    changed = kept ^ {scene.rng.choice(scene.flags)} if scene.flags and scene.rng.random() < 0.3 else kept
    said, other = Said(said.clauses, kept), Said(other.clauses, changed)
    sentences: dict[Clause, str] = {}
    return _Turn(scene.slots, said, other, (_text(scene, said, sentences), _text(scene, other, sentences)))


def _policy(scene: Scene, turns: Sequence[_Turn], wanted: int) -> list[Norm]:
    """Return rules of different wording that every turn keeps; each other text breaks few, some rules none breaks."""
    found: dict[str, Norm] = {}
    broken, idle = [0] * len(turns), 0
    for _ in range(_TRIES):
        scene.slots = scene.rng.choice(turns).slots
        norm = norm_of(scene)
        others = [norm.broken(turn.other) for turn in turns]
        if norm.text in found or None in others or any(norm.broken(turn.said) is not False for turn in turns):
            continue
        after = [count + bool(more) for count, more in zip(broken, others, strict=True)]
        if max(after) > _MOST or (not any(others) and idle == _IDLE):
            continue
        broken, idle = after, idle + (not any(others))
        found[norm.text] = norm
        if len(found) == wanted:
            break
    return list(found.values())


def _scene(words: Wordings, rng: random.Random, *, asks: bool) -> tuple[str, Scene]:
    """Return a domain's name and a scene in it, with its formal features."""
    domain = rng.choice(sorted(words.things))
    scene = Scene(words, rng, rng.choice(words.names), rng.sample(words.things[domain], 4), asks)
    # One of a kind at most: rules speak of the first and of the last sentence.
    scene.flags = [rng.choice(sorted(kind)) for kind in (words.heads, words.tails) if rng.random() < 0.5]
    return domain, scene


def _fill(scene: Scene) -> None:
    """Add what a message's sentences may say."""
    for _ in range(scene.rng.choice((2, 3, 3, 4))):
        scene.slots.append(_slot(scene))


def _context(scene: Scene, *, single: bool = False) -> tuple[Message, ...]:
    """Return what came before, in a single message if so wished; note which conditions it makes true."""
    words, rng = scene.words, scene.rng
    lines = []
    for name in rng.sample(sorted(words.facts), min(rng.choice((0, 1, 1, 2)), len(words.facts))):
        fact, true = words.facts[name], rng.random() < 0.5
        lines.append(rng.choice(fact.present if true else fact.absent))
        scene.holds.append(fact.when if true else fact.other)
        scene.fails.append(fact.other if true else fact.when)
    if scene.asks:
        scene.things = scene.things[2:]  # the other two may have come up before
    asked, other = scene.things[:2]
    if not scene.asks:
        scene.holds.append(tuple(c.format(x=asked) for c in words.asked.when))
        scene.fails.append(tuple(c.format(x=asked) for c in words.asked.other))
        if rng.random() < 0.5:
            scene.holds.append(tuple(c.format(x=other) for c in words.asked.other))
            scene.fails.append(tuple(c.format(x=other) for c in words.asked.when))
    elif not lines:
        fact = words.facts[rng.choice(sorted(words.facts))]
        lines.append(rng.choice(fact.present))
        scene.holds.append(fact.when)
        scene.fails.append(fact.other)
    turns = [(line, rng.choice(words.acks)) for line in lines]
    turns += rng.sample(words.fillers, min(rng.choice((0, 0, 0, 1, 2, 3)), len(words.fillers)))
    rng.shuffle(turns)
    question = [] if scene.asks else [rng.choice(words.asks).format(x=asked)]
    greeting = f"Hi, {scene.name} here."
    if not scene.asks and (single or rng.random() < 0.5):
        return (Message("user", " ".join([greeting, *(line for line, _ in turns), *question])),)
    talk = [Message("user", greeting), Message("assistant", rng.choice(words.openings))]
    for line, answer in turns:
        talk += [Message("user", line), Message("assistant", answer)]
    return (*talk, *(Message("user", text) for text in question))


def _slot(scene: Scene) -> list[Clause | None]:
    """Return two or three alternatives for one sentence, near to one another."""
    words, rng = scene.words, scene.rng
    kind = "act" if scene.asks else rng.choice(("act", "act", "act", "number", "choice"))
    taken = {clause.name for clause in scene.clauses() if clause.kind not in ("act", "not")}
    if kind == "number" and (free := sorted(set(words.numbers) - taken)):
        name = rng.choice(free)
        low, high = words.numbers[name].range
        first = rng.randint(low, high)
        values = {first, *(min(max(round(first * f), low), high) for f in rng.sample(FACTORS, 3))}
        return [Clause("number", name, str(v)) for v in sorted(values)]
    if kind == "choice" and (free := sorted(set(words.choices) - taken)):
        name = rng.choice(free)
        return [Clause("choice", name, v) for v in rng.sample(words.choices[name].values, rng.choice((2, 3)))]
    act, thing = rng.choice(sorted(words.acts)), rng.choice(scene.things)
    one, form = Clause("act", act, thing), rng.random()
    if form < 0.3:
        return [one, Clause("act", act, rng.choice([t for t in scene.things if t != thing]))]
    if form < 0.6:
        return [one, Clause("act", rng.choice(sorted(set(words.acts) - {act})), thing)]
    return [one, Clause("not", act, thing)] if form < 0.75 else [one, None]


def _messages(scene: Scene) -> list[Said]:
    """Return the meanings of the messages: each slot filled, each flag up or down."""
    rng = scene.rng
    columns = []
    for slot in scene.slots:
        column = [slot[i % len(slot)] for i in range(_MESSAGES)]
        rng.shuffle(column)
        columns.append(column)
    raised = {name: rng.sample(range(_MESSAGES), rng.choice((1, 2, 3))) for name in scene.flags}
    turned = rng.sample(range(_MESSAGES), 2) if rng.random() < 0.4 else []
    found = []
    for i in range(_MESSAGES):
        clauses = [column[i] for column in columns]
        if i in turned:
            clauses = [clauses[1], clauses[0], *clauses[2:]]
        flags = frozenset(name for name, up in raised.items() if i in up)
        found.append(Said(tuple(dict.fromkeys(c for c in clauses if c is not None)), flags))
    return found


def _text(scene: Scene, said: Said, sentences: dict[Clause, str]) -> str:
    """Return a message's text; mostly the same sentence for the same meaning, as twins have it."""
    rng, words = scene.rng, scene.words

    def formal(name: str) -> str:
        flag = scene.flag(name)
        return rng.choice(flag.present if name in said.flags else flag.absent).format(name=scene.name)

    parts = [formal(name) for name in scene.flags if name in words.heads]
    for clause in said.clauses:
        if clause not in sentences or rng.random() < 0.3:
            sentences[clause] = _sentence(scene, clause)
        parts.append(sentences[clause])
    parts += [formal(name) for name in scene.flags if name in words.tails]
    return " ".join(parts) or "Right."


def _sentence(scene: Scene, clause: Clause) -> str:
    words, pick = scene.words, scene.pick
    if clause.kind == "number":
        return pick(words.numbers[clause.name].says).format(n=clause.value)
    if clause.kind == "choice":
        return capital(pick(words.choices[clause.name].says).format(v=clause.value))
    act, denied = words.acts[clause.name], clause.kind == "not"
    if not scene.asks and not denied:
        return capital(pick(act.says).format(x=clause.value))
    wish = words.unwanted if denied else words.wishes
    lines = wish if scene.asks else words.negated
    return pick(lines).format(a=pick(act.bare).format(x=clause.value))
