"""Rules of a long policy, chosen by words."""

import pytest

from csrm_guard.messages import Message
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row
from csrm_guard_train.selection import select, selected

pytest.importorskip("bm25s")

TOPICS = ["refunds", "parking", "visas", "allergies", "firearms", "passwords", "tattoos", "mortgages"]
RULES = tuple(Rule(id=topic, text=f"Never discuss {topic} with a visitor.") for topic in TOPICS)
SAID = (Message("user", "I lost my passwords"), Message("assistant", "And what about parking?"))


def test_the_rules_that_share_words_are_read():
    found = select(Policy(rules=RULES), SAID, most=2)
    assert found.read == ("parking", "passwords")


def test_rules_keep_their_order():
    found = select(Policy(rules=RULES), SAID, most=5).policy.rules
    assert [r.id for r in found] == [topic for topic in TOPICS if topic in {r.id for r in found}]


def test_a_short_policy_is_left_whole():
    policy = Policy(rules=RULES)
    assert select(policy, SAID, most=8).policy is policy


def test_what_is_not_read_is_named():
    found = select(Policy(rules=RULES), SAID, most=2)
    assert set(found.unread) == set(TOPICS) - {"parking", "passwords"}


def test_permissions_are_kept_whatever_they_say():
    permit = Rule(id="may", text="Jokes about zebras are fine.", stance="permit")
    assert permit in select(Policy(rules=(*RULES, permit)), SAID, most=1).policy.rules


def test_a_conversation_without_known_words_gets_the_first_rules():
    found = select(Policy(rules=RULES), (Message("user", "zzz qqq"),), most=3)
    assert found.read == ("refunds", "parking", "visas")


def test_equal_inputs_give_equal_selections():
    runs = {select(Policy(rules=RULES), SAID, most=4).read for _ in range(5)}
    assert len(runs) == 1


def test_reading_no_rule_is_refused():
    with pytest.raises(ValueError, match="most=0"):
        select(Policy(rules=RULES), SAID, most=0)


def test_a_selected_row_is_judged_at_every_assistant_turn():
    row = Row("1", Policy(rules=RULES), SAID, None, True, None, "last message")
    assert selected(row, most=2).scope == "any assistant turn"
    assert len(selected(row, most=2).policy.rules) == 2
