import random

from csrm_guard import Message
from csrm_guard_train.data import Authored
from csrm_guard_train.talks import Alternative, Talk, talk_groups
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
