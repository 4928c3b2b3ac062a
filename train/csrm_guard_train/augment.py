"""Configuration-targeted augmentation: each conversation under rules that forbid, permit or ignore it.

The paper (section 3.2, Eq. 1) asks a reasoning model for a category that makes a conversation
unsafe (p+) and one that makes it safe (p-). Here the authored data states both: an item's strict
and lenient wordings, a ladder's guidelines below and above a rung. Distractors, rules of other
deployments, permissions and checkable rules surround them. Every label carries its origin.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from csrm_guard.messages import Message
from csrm_guard.policy import Policy, Rule
from csrm_guard.template import render_rule
from csrm_guard_train.checkable import checkable_rules
from csrm_guard_train.data import Authored, Item, Rung, Transcript
from csrm_guard_train.drills import drill, drill_talk
from csrm_guard_train.grids import grid_group
from csrm_guard_train.groups import Example, Group, LabelledRule, Order
from csrm_guard_train.manners import mannered
from csrm_guard_train.public import HARMFUL
from csrm_guard_train.recipe import Mixture
from csrm_guard_train.talks import talk_groups, whole_talk
from csrm_guard_train.twins import twin_groups

__all__ = ["Augmenter"]

T = TypeVar("T")

# The level from which a guideline forbids where only one is shown.
_USUAL = 3
# Ladders whose gravest levels break a rule of the built-in policy `baseline-harms`.
_BASELINE = {
    "violence": "violence-and-threats",
    "weapons": "weapons",
    "hate_and_discrimination": "hate",
    "harassment_and_bullying": "harassment",
    "self_harm": "self-harm",
    "illegal_drugs": "illegal-drugs",
    "financial_crime_and_fraud": "crime-and-fraud",
    "cybercrime": "cybercrime",
    "privacy_and_personal_data": "privacy",
    "medical_legal_financial_advice": "dangerous-professional-advice",
    "misinformation_and_deception": "deception-and-misinformation",
}


class Augmenter:
    """Draw the groups of an epoch from the authored sets.

    Args:
        authored: the part of the sets to draw from.
        mixture: how much of what.
        public: groups made from public sets; drawn as they are, with rules added.
        strict: groups of the pairs that Algorithm 1 kept; the same.
        responses: groups of chosen and rejected answers; drawn as they are.
    """

    def __init__(
        self,
        authored: Authored,
        mixture: Mixture,
        public: Sequence[Group] = (),
        strict: Sequence[Group] = (),
        responses: Sequence[Group] = (),
    ) -> None:
        self._authored = authored
        self._drills = authored.drills and authored.drills.few(mixture.drill_words)
        self._mixture = mixture
        self._public, self._strict, self._responses = public, strict, responses
        self._foreign = sorted({rule for item in authored.items for rule in (item.rule, *item.distractors)})
        self._permissions = sorted({item.lenient for item in authored.items})
        words = {w for item in authored.items for w in item.compliant[-1].content.lower().split()}
        self._harms = {rule.id: rule.text for rule in Policy.builtin("baseline-harms").rules}
        self._wordings = {**authored.wordings}
        for name, text in self._harms.items():
            self._wordings[name] = (text, *authored.wordings.get(name, ()))
        self._vocabulary = sorted(w for w in words if w.isalpha() and len(w) > 4)

    def epoch(self, rng: random.Random) -> list[Group]:
        """Return the groups of one pass, in random order."""
        mix, sets = self._mixture, self._authored
        groups = [self.item(row, rng) for row in _sample(sets.items, mix.items, rng)]
        groups += [self.rung(row, rng) for row in _sample(sets.rungs, mix.rungs, rng)]
        if mix.content:
            groups += [g for row in _sample(sets.rungs, mix.rungs, rng) for g in self.under_harms(row)]
        groups += [self.transcript(row, rng) for row in _sample(sets.transcripts, mix.transcripts, rng)]
        groups += [
            grid_group(row, self._foreigners(row.setting, rng), rng) for row in _sample(sets.grids, mix.grids, rng)
        ]
        groups += [
            group
            for row in _sample(sets.talks, mix.talks, rng)
            for group in talk_groups(row, self._foreigners(row.setting, rng), rng)
        ]
        groups = [self._mannered(group, rng) for group in groups]
        groups += [whole_talk(row, rng) for row in _sample(sets.talks, mix.whole_talks, rng) if row.alternatives]
        groups += [
            group
            for row in _sample(sets.twins, mix.twins, rng)
            for group in twin_groups(row, self._wordings, HARMFUL, rng)
        ]
        if self._drills:
            groups += [grid_group(drill(self._drills, rng, i), (), rng) for i in range(mix.drills)]
            groups += [whole_talk(drill_talk(self._drills, rng, i), rng) for i in range(mix.drill_talks)]
        groups += [self.public(group, rng) for group in _sample(self._public, mix.public, rng)]
        groups += [self.public(group, rng) for group in _sample(self._strict, mix.strict, rng)]
        groups += _sample(self._responses, mix.responses, rng)
        rng.shuffle(groups)
        return groups

    def item(self, item: Item, rng: random.Random) -> Group:
        """Return both messages of a pair under the same rules in the same order."""
        mix = self._mixture
        target = item.paraphrase if rng.random() < mix.paraphrases else item.rule
        if rng.random() < mix.paraphrases / 4:
            target = render_rule(Rule(id="target", text=target, stance="require"))
        # (text, permits, broken by `violating`, broken by `compliant`, weight in each, origin).
        # The rules that have to be read weigh more than those that only have to be passed over.
        rows: list[tuple[str, tuple[str, ...], bool, bool, float, float, str]] = [
            (target, (), True, False, 2.0, 2.0, "rule"),
        ]
        worded = rng.random() < mix.wordings
        if worded:
            trust = 0.0 if item.turned is None else 1.0 if item.turned else 0.5
            rows.append((item.lenient, (), False, bool(item.turned), 1.0, trust, "lenient"))
        if worded and item.strict:
            rows.append((item.strict, (), True, True, 0.5, 1.0, "strict"))
        if rng.random() < mix.permits:
            rows.append(self._permitted(item, target, rng))
        near = _sample(item.distractors, mix.distractors, rng)
        rows += [(text, (), False, False, 0.6, 0.6, "distractor") for text in near]
        rows += [(text, (), False, False, 0.4, 0.4, "foreign") for text in self._foreigners(item.setting, rng)]
        rows += [(text, (), False, False, 0.4, 0.4, "content") for text in self._contents(rng)]
        order = list(range(len(rows)))
        rng.shuffle(order)
        at = {rows[old][6]: new for new, old in enumerate(order)}
        rows = [rows[i] for i in order]
        breaking = tuple(LabelledRule(r[0], r[2], f"{item.id}/{r[6]}", r[1], r[4]) for r in rows)
        keeping = tuple(LabelledRule(r[0], r[3], f"{item.id}/{r[6]}", r[1], r[5]) for r in rows)
        orders = [Order((0, at["rule"]), (1, at["rule"]))]
        if "lenient" in at:
            orders.append(Order((0, at["rule"]), (0, at["lenient"])))
        if "lenient" in at and item.turned:
            orders.append(Order((1, at["lenient"]), (0, at["lenient"])))
        if "strict" in at:
            orders.append(Order((1, at["strict"]), (1, at["rule"])))
        examples = (
            Example((item.violating,), breaking + self._checkable(item.violating, rng)),
            Example((item.compliant,), keeping + self._checkable(item.compliant, rng)),
        )
        return Group(item.id, examples, tuple(orders))

    def _mannered(self, group: Group, rng: random.Random) -> Group:
        manners = self._authored.manners
        return mannered(group, manners, rng) if manners and rng.random() < self._mixture.manners else group

    def _permitted(
        self, item: Item, target: str, rng: random.Random
    ) -> tuple[str, tuple[str, ...], bool, bool, float, float, str]:
        """Return the rule with permissions: the apt one excuses the violation, others do not."""
        others = tuple(rng.sample(self._permissions, k=rng.randint(1, 2)))
        if rng.random() < 0.5:
            permits = [item.lenient, *others[:1]] if rng.random() < 0.4 else [item.lenient]
            rng.shuffle(permits)
            return target, tuple(permits), False, False, 1.0, 0.7, "permitted"
        return target, others, True, False, 1.0, 1.0, "permitted-else"

    def rung(self, rung: Rung, rng: random.Random) -> Group:
        """Return a conversation under guidelines around its own level (p+, p-) and others."""
        ladder, level = self._authored.ladders[rung.category], rung.level
        worded = rng.random() < self._mixture.wordings
        near = sorted({max(level, 1), min(level + 1, 7), rng.randint(1, 7)}) if worded else [_USUAL]
        rules = []
        for start in near:
            broken = level >= start and level > 0
            text = rng.choice(ladder.guidelines[start])
            rules.append(LabelledRule(text, broken, f"{rung.id}/from-{start}"))
        orders = []
        if worded and level > 0:
            orders = [Order((0, near.index(max(level, 1))), (0, near.index(min(level + 1, 7))))]
        if level > 0 and rng.random() < self._mixture.permits * 2:
            rules.append(self._excused(rung, rng))
        others = 1 + self._mixture.content // 2 if self._mixture.distractors else 0
        rules += [self._elsewhere(rung, rng) for _ in range(others)]
        rules += self._baseline(rung, rng)
        rules += [LabelledRule(t, False, f"{rung.id}/foreign", (), 0.4) for t in self._foreigners("", rng)]
        rules += self._checkable(rung.messages, rng)
        return Group(rung.id, (Example((rung.messages,), tuple(rules)),), tuple(orders))

    def under_harms(self, rung: Rung) -> list[Group]:
        """Return a rung's conversation under all of `baseline-harms`, where its level says whether it keeps them.

        The mildest levels are about a grave topic and harmless: the answer is, and the question, unless it was refused.
        """
        grave = rung.level >= 5 and rung.category in _BASELINE
        if not grave and rung.level > 1:
            return []
        rules = tuple(
            LabelledRule(
                text,
                grave and name == _BASELINE[rung.category],
                f"{rung.id}/harms/{name}",
                (),
                0.4 if not grave else 0.8 if name == _BASELINE[rung.category] else 0.0,
            )
            for name, text in self._harms.items()
        )
        views = [rung.messages]
        if not grave and not rung.refusal and len(rung.messages) > 1 and rung.messages[-2].role == "user":
            views.append(rung.messages[:-1])
        return [Group(f"{rung.id}/harms-{i}", (Example((view,), rules, grave),)) for i, view in enumerate(views)]

    def _excused(self, rung: Rung, rng: random.Random) -> LabelledRule:
        """Return a guideline with a permission for the rung itself, or for a graver one only."""
        ladder, level = self._authored.ladders[rung.category], rung.level
        text = rng.choice(ladder.guidelines[rng.randint(1, level)])
        if level == 6 or rng.random() < 0.5:
            return LabelledRule(text, False, f"{rung.id}/excused", (ladder.rungs[level],))
        other = ladder.rungs[rng.randint(level + 1, 6)]
        return LabelledRule(text, True, f"{rung.id}/excused-else", (other,), 0.8)

    def _baseline(self, rung: Rung, rng: random.Random) -> list[LabelledRule]:
        """Return the built-in rule on the rung's category: kept at its mildest, broken at its gravest."""
        if not self._mixture.content or rung.category not in _BASELINE or rung.level in (2, 3, 4):
            return []
        text = self._harms[_BASELINE[rung.category]]
        others = [t for i, t in self._harms.items() if i != _BASELINE[rung.category]] if rung.level == 0 else []
        found = [LabelledRule(text, rung.level >= 5, f"{rung.id}/baseline", (), 0.8)]
        if others:
            found.append(LabelledRule(rng.choice(others), False, f"{rung.id}/baseline-else", (), 0.4))
        return found

    def _contents(self, rng: random.Random) -> list[str]:
        """Return rules about grave content, which conversations of ordinary deployments keep."""
        ladders = sorted(self._authored.ladders)
        found = []
        for _ in range(self._mixture.content):
            if rng.random() < 0.5:
                found.append(rng.choice(sorted(self._harms.values())))
            else:
                guidelines = self._authored.ladders[rng.choice(ladders)].guidelines
                found.append(rng.choice(guidelines[rng.randint(4, 6)]))
        return found

    def _elsewhere(self, rung: Rung, rng: random.Random) -> LabelledRule:
        """Return a guideline of another category that forbids only its graver levels."""
        other = rng.choice(sorted(set(self._authored.ladders) - {rung.category}))
        start = rng.randint(4, 6)
        text = rng.choice(self._authored.ladders[other].guidelines[start])
        return LabelledRule(text, False, f"{rung.id}/{other}-{start}", (), 0.6)

    def transcript(self, row: Transcript, rng: random.Random) -> Group:
        """Return every assistant turn with its history, under the policy's rules in random order."""
        ends = [i for i, m in enumerate(row.messages) if m.role == "assistant"]
        views = tuple(row.messages[: i + 1] for i in ends)
        rules = [LabelledRule(t, i in row.violated, f"{row.id}/{i}") for i, t in row.rules.items()]
        rules += [LabelledRule(text, False, f"{row.id}/content", (), 0.4) for text in self._contents(rng)[:1]]
        rng.shuffle(rules)
        return Group(row.id, (Example(views, tuple(rules)),))

    def public(self, group: Group, rng: random.Random) -> Group:
        """Return a public conversation with rules of other deployments and checkable ones added."""
        examples = []
        for example in group.examples:
            extra = [LabelledRule(t, False, f"{group.id}/foreign", (), 0.4) for t in self._foreigners("", rng)]
            rules = example.rules + tuple(extra) + self._checkable(example.views[-1], rng)
            examples.append(Example(example.views, rules, None if example.unsafe is None else _any(example, rules)))
        return Group(group.id, tuple(examples), group.orders)

    def _foreigners(self, setting: str, rng: random.Random) -> list[str]:
        return rng.sample(self._foreign, k=min(self._mixture.foreign, len(self._foreign)))

    def _checkable(self, messages: Sequence[Message], rng: random.Random) -> tuple[LabelledRule, ...]:
        made = checkable_rules(messages, self._vocabulary, rng, count=self._mixture.checkable)
        return tuple(LabelledRule(c.text, c.violated, f"checkable/{c.kind}", (), 0.4) for c in made)


def _any(example: Example, rules: Sequence[LabelledRule]) -> bool:
    """Return the verdict of an example under more rules than its own."""
    return bool(example.unsafe) or any(rule.violated for rule in rules[len(example.rules) :])


def _sample(rows: Sequence[T], share: float, rng: random.Random) -> list[T]:
    """Return a random share of the rows; a fractional row is drawn by chance."""
    exact = len(rows) * share
    count = int(exact) + (rng.random() < exact % 1)
    return rng.sample(list(rows), k=min(count, len(rows)))
