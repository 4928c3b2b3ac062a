import random
from dataclasses import replace

from csrm_guard import Message
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.data import Authored
from csrm_guard_train.recipe import Mixture
from csrm_guard_train.talks import Alternative, Talk, talk_groups, whole_talk
from csrm_guard_train.validation import validation_rows

MESSAGES = (
    Message("user", "Two tickets?"), Message("assistant", "For which film?"),
    Message("user", "Rain."), Message("assistant", "They are 20."),
)  # fmt: skip
RULES = tuple(f"Rule {i}." for i in range(8))
TALK = Talk(
    "k-1", "A cinema.", RULES, MESSAGES,
    (Alternative(1, "They are 20.", frozenset({2})), Alternative(3, "They are 21.", frozenset({5})),
     Alternative(3, "They are 20!", frozenset({0, 7}))),
)  # fmt: skip


def test_a_group_per_assistant_turn_holds_its_text_and_its_alternatives():
    first, second = talk_groups(TALK, [], random.Random(0))
    said = [[example.views[0][-1].content for example in group.examples] for group in (first, second)]
    assert said == [["For which film?", "They are 20."], ["They are 20.", "They are 21.", "They are 20!"]]


def test_only_alternatives_break_rules():
    for group in talk_groups(TALK, ["Foreign."], random.Random(1)):
        base, *others = group.examples
        assert not any(rule.violated for rule in base.rules)
        assert all(any(rule.violated for rule in other.rules) for other in others)


def test_rules_that_a_turn_could_break_are_always_shown():
    for seed in range(10):
        _, second = talk_groups(TALK, [], random.Random(seed), most=4)
        shown = {rule.text for rule in second.examples[0].rules}
        assert len(shown) == 4
        assert {RULES[0], RULES[5], RULES[7]} <= shown


def test_orders_stay_within_a_rule_and_point_from_broken_to_kept():
    for group in talk_groups(TALK, [], random.Random(0)):
        assert group.orders
        for order in group.orders:
            more, less = (group.examples[e].rules[r] for e, r in (order.more, order.less))
            assert (more.text, more.violated, less.violated) == (less.text, True, False)


def test_held_out_talks_differ_in_one_turn_and_are_safe_as_often_as_not():
    rows = {row.id: row for row in validation_rows(Authored((), {}, (), (), talks=(TALK,)), 0)}
    assert {i: row.label for i, row in rows.items()} == {
        "k-1-alt0": True, "k-1-base0": False, "k-1-alt1": True, "k-1-base1": False,
    }  # fmt: skip
    assert [a == b for a, b in zip(rows["k-1-alt0"].messages, MESSAGES, strict=True)] == [True, False, True, True]
    assert len(rows["k-1-base1"].policy.rules) == 7


def test_a_whole_talk_is_shown_as_it_is_and_with_one_turn_rewritten_all_turns_judged():
    base, other = whole_talk(TALK, random.Random(0)).examples
    assert base.views == (MESSAGES[:2], MESSAGES)
    assert [len(view) for view in other.views] == [2, 4]
    assert sum(a != b for a, b in zip(base.views[1], other.views[1], strict=True)) == 1
    assert (base.verdict, other.verdict) == (False, True)


def test_a_whole_talk_is_under_all_rules_and_says_which_one_the_rewritten_turn_breaks():
    seen = set()
    for seed in range(20):
        base, other = whole_talk(TALK, random.Random(seed)).examples
        assert sorted(rule.text for rule in other.rules) == sorted(RULES)
        assert [rule.text for rule in base.rules] == [rule.text for rule in other.rules]
        seen.add(frozenset(RULES.index(rule.text) for rule in other.rules if rule.violated))
    assert seen == {alternative.broken for alternative in TALK.alternatives}


def test_a_rewritten_turn_stays_in_the_history_of_later_turns():
    groups = [whole_talk(TALK, random.Random(seed)) for seed in range(20)]
    first = next(g for g in groups if g.examples[1].views[0][-1].content == "They are 20.")
    assert first.examples[1].views[1][1].content == "They are 20."
    assert first.examples[1].views[1][3] == MESSAGES[3]


def test_an_epoch_shows_the_asked_share_of_talks_whole():
    talks = tuple(replace(TALK, id=f"k-{i}") for i in range(8))
    augmenter = Augmenter(Authored((), {}, (), (), talks=talks), Mixture(talks=0.0, whole_talks=0.5, foreign=0))
    assert sum(group.id.endswith("/whole") for group in augmenter.epoch(random.Random(0))) == 4
