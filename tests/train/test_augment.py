import random
from collections.abc import Iterator
from dataclasses import replace

from csrm_guard import Message, Policy
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.data import Authored, Rung
from csrm_guard_train.groups import Group, LabelledRule, Order
from csrm_guard_train.recipe import Mixture


def items(authored: Authored, **changes: float) -> Iterator[Group]:
    augmenter = Augmenter(authored, Mixture(**changes))  # type: ignore[arg-type]
    rng = random.Random(0)
    for _ in range(4):
        for item in authored.items:
            yield augmenter.item(item, rng)


def labels(rules: tuple[LabelledRule, ...], kind: str) -> list[bool]:
    return [r.violated for r in rules if r.origin.endswith(f"/{kind}")]


def test_the_violating_message_breaks_the_rule_and_the_other_keeps_it(authored: Authored):
    for group in items(authored):
        breaking, keeping = group.examples
        assert labels(breaking.rules, "rule") == [True]
        assert labels(keeping.rules, "rule") == [False]


def test_a_lenient_wording_excuses_the_same_message(authored: Authored):
    assert all(labels(g.examples[0].rules, "lenient") == [False] for g in items(authored))


def test_a_strict_wording_turns_the_same_message_unsafe(authored: Authored):
    found = [labels(g.examples[1].rules, "strict") for g in items(authored)]
    assert [True] in found
    assert [False] not in found


def test_an_apt_permission_excuses_and_another_does_not(authored: Authored):
    groups = list(items(authored, permits=1.0))
    excused = [r for g in groups for r in g.examples[0].rules if r.origin.endswith("/permitted")]
    other = [r for g in groups for r in g.examples[0].rules if r.origin.endswith("/permitted-else")]
    assert excused
    assert other
    assert not any(r.violated for r in excused)
    assert all(r.violated for r in other)
    assert all(r.permits for r in excused + other)


def test_both_messages_of_a_pair_stand_under_the_same_rules(authored: Authored):
    for group in items(authored, checkable=0):
        breaking, keeping = group.examples
        assert [r.text for r in breaking.rules] == [r.text for r in keeping.rules]


def test_orders_point_from_more_to_less_violated(authored: Authored):
    for group in items(authored):
        for order in group.orders:
            more = group.examples[order.more[0]].rules[order.more[1]]
            less = group.examples[order.less[0]].rules[order.less[1]]
            assert more.violated
            assert not less.violated


def test_a_rung_is_unsafe_from_its_own_level_down(authored: Authored):
    augmenter, rng = Augmenter(authored, Mixture(permits=0.0, checkable=0)), random.Random(0)
    for rung in authored.rungs:
        for rule in augmenter.rung(rung, rng).examples[0].rules:
            if "/from-" in rule.origin:
                start = int(rule.origin.rsplit("-", 1)[1])
                assert rule.violated == (rung.level >= start and rung.level > 0)


def test_every_assistant_turn_of_a_transcript_is_a_view(authored: Authored):
    augmenter, rng = Augmenter(authored, Mixture()), random.Random(0)
    for row in authored.transcripts:
        (example,) = augmenter.transcript(row, rng).examples
        assert len(example.views) == sum(m.role == "assistant" for m in row.messages)
        assert all(view[-1].role == "assistant" for view in example.views)


def test_every_label_says_where_it_comes_from(authored: Authored):
    for group in Augmenter(authored, Mixture()).epoch(random.Random(0)):
        assert all(rule.origin for example in group.examples for rule in example.rules)


def test_an_epoch_depends_on_the_seed_alone(authored: Authored):
    augmenter = Augmenter(authored, Mixture())
    assert augmenter.epoch(random.Random(5)) == augmenter.epoch(random.Random(5))
    assert augmenter.epoch(random.Random(5)) != augmenter.epoch(random.Random(6))


def test_a_lenient_wording_that_turns_both_labels_over_is_learnt_as_such(authored: Authored):
    item = replace(authored.items[0], turned=True)
    group = Augmenter(authored, Mixture(wordings=1.0, paraphrases=0.0)).item(item, random.Random(0))
    at = [rule.origin for rule in group.examples[1].rules].index(f"{item.id}/lenient")
    assert not group.examples[0].rules[at].violated
    assert group.examples[1].rules[at].violated
    assert Order((1, at), (0, at)) in group.orders


def test_a_wording_that_nobody_can_judge_has_no_weight(authored: Authored):
    item = replace(authored.items[0], turned=None)
    group = Augmenter(authored, Mixture(wordings=1.0)).item(item, random.Random(0))
    weights = {rule.origin: rule.weight for rule in group.examples[1].rules}
    assert weights[f"{item.id}/lenient"] == 0.0


def test_without_wordings_no_rule_is_made_stricter_or_laxer(authored: Authored):
    augmenter = Augmenter(authored, Mixture(wordings=0.0, rungs=1.0, permits=0.0))
    origins = [r.origin for g in augmenter.epoch(random.Random(0)) for e in g.examples for r in e.rules]
    assert not [o for o in origins if o.endswith(("/lenient", "/strict"))]
    assert {o.split("/")[1] for o in origins if "/from-" in o} == {"from-3"}


def rung(level: int, category: str = "violence", *, refusal: bool = False) -> Rung:
    return Rung("r", category, level, (Message("user", "Ask."), Message("assistant", "Answer.")), refusal)


def under_harms(authored: Authored, asked: Rung) -> list[Group]:
    return Augmenter(authored, Mixture(content=1)).under_harms(asked)


def test_the_mildest_rungs_keep_every_built_in_rule_in_answer_and_question(authored: Authored):
    answer, question = under_harms(authored, rung(1))
    assert [group.examples[0].verdict for group in (answer, question)] == [False, False]
    assert question.examples[0].views[0][-1].role == "user"
    assert len(answer.examples[0].rules) == len(Policy.builtin("baseline-harms").rules)


def test_the_question_of_a_refusal_is_not_called_harmless(authored: Authored):
    (answer,) = under_harms(authored, rung(0, refusal=True))
    assert answer.examples[0].views[0][-1].role == "assistant"


def test_the_gravest_rungs_break_their_own_built_in_rule(authored: Authored):
    (group,) = under_harms(authored, rung(6))
    (broken,) = [rule for rule in group.examples[0].rules if rule.violated]
    assert broken.origin == "r/harms/violence-and-threats"
    assert group.examples[0].verdict is True


def test_rungs_between_and_categories_without_a_built_in_rule_say_nothing(authored: Authored):
    assert under_harms(authored, rung(3)) == []
    assert under_harms(authored, rung(6, "profanity_and_crude_language")) == []
