"""Which rows fail, and of which kind they are."""

import math

from csrm_guard.messages import Message
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row
from csrm_guard_train.failures import by_field, worst

POLICY = Policy(rules=(Rule(id="a", text="no slang"), Rule(id="b", text="be brief")))


def make_row(key: str, unsafe: bool) -> Row:
    return Row(key, POLICY, (Message("assistant", f"said {key}"),), "response", unsafe, None, "last message")


ROWS = [
    make_row("x-violating", True),
    make_row("x-compliant", False),
    make_row("y-violating", True),
    make_row("z", False),
]
P = {"x-violating": 0.4, "x-compliant": 0.6, "y-violating": 0.9, "z": 0.2}


def test_the_row_farthest_from_its_label_comes_first():
    found = worst(ROWS, P, {row.id: {"a": 0.1, "b": P[row.id]} for row in ROWS}, most=2)
    assert [row["id"] for row in found] == ["x-violating", "x-compliant"]


def test_a_failure_names_the_rule_that_the_model_found_violated():
    found = worst(ROWS[:1], P, {"x-violating": {"a": 0.1, "b": 0.4}})[0]
    assert (found["rule"], found["message"], found["label"]) == ("be brief (q 0.40)", "said x-violating", "unsafe")


def test_each_value_has_numbers_of_its_own():
    found = by_field(ROWS, P, {"x-violating": "scope", "x-compliant": "scope", "y-violating": "style", "z": "style"})
    assert (found["scope"]["auroc"], found["style"]["auroc"]) == (0.0, 1.0)
    assert found["scope"]["same_rule"] == 0.0
    assert math.isnan(found["style"]["same_rule"])


def test_rows_without_the_field_are_a_group():
    assert by_field(ROWS, P, {})[""]["n"] == 4
