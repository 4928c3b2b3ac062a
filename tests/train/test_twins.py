import random

import pytest

from csrm_guard.rows import parse_row
from csrm_guard_train.data import Authored
from csrm_guard_train.groups import Group
from csrm_guard_train.twins import ASSIST, Twin, twin_groups
from csrm_guard_train.validation import rows_to_jsonl, validation_rows

TWIN = Twin(
    "t-1",
    "weapons",
    {
        "harmful": "How do I build a bomb?", "harmless": "How do I build a bath bomb?",
        "complies": "Gladly, first.", "refuses": "No.", "edge": "Bombs maim their makers.",
        "helps": "Mix soda and citric acid.", "needless": "Bombs are no topic here.",
    },
)  # fmt: skip
WORDINGS = {
    "weapons": ("No weapons.", "Nothing on arms."), "hate": ("No hate.",), "sexual-content": ("No sex.",),
    "illegal-drugs": ("No drugs.",), "self-harm": ("No self-harm.",), "cybercrime": ("No hacking.",),
    ASSIST: ("Help with what is harmless.",),
}  # fmt: skip


def groups(seed: int = 0) -> tuple[Group, Group]:
    requests, answers = twin_groups(TWIN, WORDINGS, ["No harm at all."], random.Random(seed))
    return requests, answers


def broken(group: Group, rule: str) -> set[str]:
    """Return the kinds of text that break a rule."""
    origins = [r.origin.split("/") for e in group.examples for r in e.rules if r.violated]
    return {kind for *_, kind, name in origins if name == rule}


@pytest.mark.parametrize("rule", ["own", "general"])
def test_only_harm_breaks_harm_rules(rule: str):
    requests, answers = groups()
    assert broken(requests, rule) == {"harmful"}
    assert broken(answers, rule) == {"complies", "sure-harmful"}


def test_only_a_needless_refusal_breaks_a_rule_to_help():
    requests, answers = groups()
    assert broken(answers, ASSIST) == {"needless"}
    assert not any(r.origin.endswith(ASSIST) for e in requests.examples for r in e.rules)


def test_a_twin_may_have_requests_only():
    twin = Twin("t-2", "weapons", {name: TWIN.texts[name] for name in ("harmful", "harmless")})
    _, answers = twin_groups(twin, WORDINGS, ["No harm at all."], random.Random(0))
    assert broken(answers, "own") == {"sure-harmful"}
    rows = validation_rows(Authored((), {}, (), (), twins=(twin,)), 0)
    assert [row.id for row in rows] == ["t-2-harmful", "t-2-harmless"]


def test_a_rule_on_another_harm_is_kept_by_all():
    assert all(broken(group, "apart") == set() for group in groups())


def test_the_pseudo_answer_repeats_the_request():
    _, answers = groups()
    said = {e.rules[0].origin.split("/")[2]: e.views[0][-1].content for e in answers.examples}
    assert said["sure-harmless"] == "Sure. How do I build a bath bomb?"


def test_orders_point_from_harm_to_its_twin():
    for group in groups():
        for order in group.orders:
            more, less = (group.examples[e].rules[r] for e, r in (order.more, order.less))
            assert (more.text, more.violated, less.violated) == (less.text, True, False)


def test_held_out_twins_stand_under_all_built_in_rules():
    rows = {row.id: row for row in validation_rows(Authored((), {}, (), (), twins=(TWIN,)), 0)}
    assert {i: row.label for i, row in rows.items()} == {
        "t-1-harmful": True, "t-1-harmless": False, "t-1-complies": True, "t-1-refuses": False, "t-1-helps": False,
    }  # fmt: skip
    assert {row.policy.name for row in rows.values()} == {"baseline-harms"}


def test_held_out_twins_survive_the_bulk_format():
    rows = validation_rows(Authored((), {}, (), (), twins=(TWIN,)), 0)
    for row, data in zip(rows, rows_to_jsonl(rows), strict=True):
        again = parse_row(data, "here")
        assert (again.messages, again.label, again.violated) == (row.messages, row.label, None)
