"""Twins: a harmful and a harmless request that sound alike, and their answers; their groups under harm rules.

Answers are judged apart from requests: where a harmful request was refused, the answer keeps the rules. The
pseudo-answer "Sure. REQUEST" is how over-refusal benchmarks ask an answer's judge about a request (paper, table 4).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csrm_guard.messages import Message
from csrm_guard_train.groups import Example, Group, LabelledRule, orders_within

__all__ = ["ASSIST", "Twin", "read_twin", "twin_groups"]

# In `wordings`: rules that ask for help where there is no harm.
ASSIST = "assist"
# Categories far enough from each other that a text which breaks one keeps the others.
_APART = ("hate", "sexual-content", "illegal-drugs", "self-harm", "cybercrime", "weapons")
# What breaks the rule of its category, and what keeps all.
_HARMFUL = ("harmful", "wrapped", "complies", "sure-harmful")
_ANSWERS: Mapping[str, str] = {
    "complies": "harmful", "refuses": "harmful", "edge": "harmful", "sure-harmful": "harmful",
    "helps": "harmless", "needless": "harmless", "sure-harmless": "harmless",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Twin:
    """A harmful request of a category of `baseline-harms` and a harmless one that sounds like it, with answers.

    Attributes:
        texts: `harmful` and `harmless`, and those of these that were written: `wrapped` (the harmful one as a
            jailbreak); answers to the harmful one: `complies`, `refuses`, `edge` (informs without helping); to the
            other: `helps`, `needless` (refuses).
    """

    id: str
    category: str
    texts: Mapping[str, str]


def read_twin(row: dict[str, Any]) -> Twin:
    """Return a twin from a row of its file; KeyError: a field is missing."""
    names = ("harmful", "harmless", "wrapped", "complies", "refuses", "helps", "needless", "edge")
    return Twin(row["id"], row["category"], {name: row[name] for name in names if row.get(name)})


def twin_groups(
    twin: Twin, wordings: Mapping[str, Sequence[str]], general: Sequence[str], rng: random.Random
) -> list[Group]:
    """Return a twin's requests as one group and its answers as another.

    Args:
        twin: the texts.
        wordings: texts of each harm rule by its id, the built-in one first; those of `ASSIST` too, if there are any.
        general: wordings of one rule against all harm.
        rng: decides which wordings are shown.
    """
    own = rng.choice(wordings[twin.category][:1] if rng.random() < 0.4 else wordings[twin.category])
    apart = [rng.choice(wordings[i]) for i in rng.sample([i for i in _APART if i != twin.category], k=1)]
    rules = [("own", own), ("general", rng.choice(general)), *(("apart", text) for text in apart)]
    if wordings.get(ASSIST):
        rules.append((ASSIST, rng.choice(wordings[ASSIST])))
    rng.shuffle(rules)
    texts = {
        **twin.texts,
        "sure-harmful": f"Sure. {twin.texts['harmful']}",
        "sure-harmless": f"Sure. {twin.texts['harmless']}",
    }
    requests = [name for name in ("harmful", "harmless", "wrapped") if name in texts]
    answers = [name for name in _ANSWERS if name in texts]
    return [
        _group(f"{twin.id}/requests", requests, texts, [rule for rule in rules if rule[0] != ASSIST]),
        _group(f"{twin.id}/answers", answers, texts, rules),
    ]


def _group(name: str, kinds: Sequence[str], texts: Mapping[str, str], rules: Sequence[tuple[str, str]]) -> Group:
    examples = tuple(
        Example(
            (_view(kind, texts),),
            tuple(
                LabelledRule(text, _broken(kind, rule), f"{name}/{kind}/{rule}", (), _weight(rule))
                for rule, text in rules
            ),
        )
        for kind in kinds
    )
    return Group(name, examples, orders_within(examples))


def _view(kind: str, texts: Mapping[str, str]) -> tuple[Message, ...]:
    if kind not in _ANSWERS:
        return (Message("user", texts[kind]),)
    return (Message("user", texts[_ANSWERS[kind]]), Message("assistant", texts[kind]))


def _broken(kind: str, rule: str) -> bool:
    if rule == ASSIST:
        return kind == "needless"
    return rule != "apart" and kind in _HARMFUL


def _weight(rule: str) -> float:
    return 0.4 if rule == "apart" else 1.0
