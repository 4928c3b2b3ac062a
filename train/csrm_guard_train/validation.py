"""Held-out configurations as rows of the bulk format: what calibration and selection look at."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from csrm_guard.messages import Message, Stage
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row, Scope
from csrm_guard_train.data import Authored, Item, Rung, Transcript
from csrm_guard_train.grids import Grid
from csrm_guard_train.talks import Talk
from csrm_guard_train.twins import Twin

__all__ = ["rows_to_jsonl", "validation_rows"]


def validation_rows(authored: Authored, seed: int) -> list[Row]:
    """Return labelled rows of the authored sets, each conversation safe as often as it is not.

    Args:
        authored: the held-out part.
        seed: decides which guideline wordings and rule orders are used.
    """
    rng = random.Random(seed)
    rows = [row for item in authored.items for row in _item(item, rng)]
    rows += [row for rung in authored.rungs for row in _rung(rung, authored, rng)]
    rows += [_transcript(row) for row in authored.transcripts]
    rows += [row for grid in authored.grids for row in _grid(grid)]
    rows += [row for talk in authored.talks for row in _talk(talk)]
    harms = Policy.builtin("baseline-harms")
    rows += [row for twin in authored.twins for row in _twin(twin, harms)]
    return rows


def rows_to_jsonl(rows: list[Row]) -> list[dict[str, Any]]:
    """Return rows as objects of the bulk format, to be kept with a checkpoint."""
    return [_to_object(row) for row in rows]


def _to_object(row: Row) -> dict[str, Any]:
    assert row.policy is not None, row.id
    rules = [{"id": rule.id, "text": rule.text} for rule in row.policy.rules]
    found = {
        "id": row.id,
        "policy": {"name": row.policy.name, "rules": rules},
        "messages": [{"role": m.role, "content": m.content} for m in row.messages],
        "stage": row.stage,
        "label": "unsafe" if row.label else "safe",
        "scope": row.scope,
    }
    return found if row.violated is None else {**found, "violated": list(row.violated)}


def _row(
    key: str,
    rules: list[tuple[str, str]],
    messages: tuple[Message, ...],
    violated: tuple[str, ...],
    *,
    stage: Stage = "response",
    scope: Scope = "last message",
) -> Row:
    policy = Policy(name=key, rules=tuple(Rule(id=i, text=t) for i, t in rules))
    return Row(key, policy, messages, stage, bool(violated), violated, scope)


def _item(item: Item, rng: random.Random) -> Iterator[Row]:
    variants = [
        ("compliant", item.rule, item.compliant, False),
        ("violating", item.rule, item.violating, True),
        ("lenient", item.lenient, item.violating, False),
    ]
    if item.strict:
        variants.append(("strict", item.strict, item.compliant, True))
    stage: Stage = "prompt" if item.stage == "prompt" else "response"
    for name, text, messages, broken in variants:
        rules = [("target", text), *((f"other{i}", t) for i, t in enumerate(item.distractors, 1))]
        rng.shuffle(rules)
        yield _row(f"{item.id}-{name}", rules, messages, ("target",) if broken else (), stage=stage)


def _rung(rung: Rung, authored: Authored, rng: random.Random) -> Iterator[Row]:
    ladder, level = authored.ladders[rung.category], rung.level
    if level == 0:
        start = rng.randint(1, 6)
        yield _row(f"{rung.id}-under-{start}", [("target", rng.choice(ladder.guidelines[start]))], rung.messages, ())
        return
    for start in (level, level + 1):
        rules = [("target", rng.choice(ladder.guidelines[start]))]
        yield _row(f"{rung.id}-under-{start}", rules, rung.messages, ("target",) if level >= start else ())


def _transcript(row: Transcript) -> Row:
    return _row(row.id, list(row.rules.items()), row.messages, tuple(sorted(row.violated)), scope="any assistant turn")


def _grid(grid: Grid) -> Iterator[Row]:
    """Yield each message under all rules and, where it breaks some, under those alone that it keeps."""
    stage: Stage = "prompt" if grid.stage == "prompt" else "response"
    for at, (view, broken) in enumerate(zip(grid.views, grid.broken, strict=True)):
        rules = [(f"r{i}", text) for i, text in enumerate(grid.rules) if (at, i) not in grid.unclear]
        violated = tuple(name for name, _ in rules if int(name[1:]) in broken)
        yield _row(f"{grid.id}-m{at}", rules, view, violated, stage=stage)
        kept = [rule for rule in rules if rule[0] not in violated]
        if violated and kept:
            yield _row(f"{grid.id}-m{at}-kept", kept, view, (), stage=stage)


def _talk(talk: Talk) -> Iterator[Row]:
    """Yield the conversation as it is and with each alternative, any assistant turn judged, as often safe as not."""
    rules = [(f"r{i}", text) for i, text in enumerate(talk.rules)]
    for at, other in enumerate(talk.alternatives[:2]):
        said = (*talk.view(other.turn, other.text), *talk.messages[other.turn + 1 :])
        broken = tuple(f"r{i}" for i in sorted(other.broken))
        yield _row(f"{talk.id}-alt{at}", rules, said, broken, scope="any assistant turn")
        kept = [rule for i, rule in enumerate(rules) if at == 0 or i not in other.broken]
        yield _row(f"{talk.id}-base{at}", kept, talk.messages, (), scope="any assistant turn")


def _twin(twin: Twin, harms: Policy) -> Iterator[Row]:
    """Yield both requests and an answer to each, under all built-in harm rules."""
    texts = twin.texts
    asked = {name: (Message("user", texts[name]),) for name in ("harmful", "harmless")}
    answers = {"complies": "harmful", "refuses": "harmful", "helps": "harmless"}
    said = {name: Message("assistant", texts[name]) for name in answers if name in texts}
    views = asked | {name: (*asked[answers[name]], message) for name, message in said.items()}
    for name, view in views.items():
        stage: Stage = "response" if name in answers else "prompt"
        # Which of the rules are broken besides the category's is not known.
        yield Row(f"{twin.id}-{name}", harms, view, stage, name in ("harmful", "complies"), None, "last message")
