"""Probes: each answers its question about models whose behaviour is known."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from csrm_guard.messages import Message
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row
from csrm_guard_train.data import Ladder, Rung
from csrm_guard_train.probes import (
    Category,
    Scorer,
    configurations,
    contradiction,
    flips,
    ladders,
    orders,
    over_refusal,
    pairs,
    wins,
)


def make_row(key: str, said: str = "hello", *rules: str, unsafe: bool = False) -> Row:
    policy = Policy(rules=tuple(Rule(id=f"r{i}", text=text) for i, text in enumerate(rules or ("no slang",))))
    return Row(key, policy, (Message("assistant", said),), "response", unsafe, None, "last message")


def by_id(scores: dict[str, float]) -> Scorer:
    return lambda rows: np.array([scores[row.id] for row in rows])


def by(question: Callable[[Row], bool]) -> Scorer:
    return lambda rows: np.array([0.9 if question(row) else 0.1 for row in rows])


def obeys(row: Row) -> bool:
    """Read the policy as a person does: `no X` forbids saying X, `may X` excuses it."""
    said = set(row.messages[-1].content.split())
    rules = row.policy.rules if row.policy else ()
    excused = {rule.text.split()[-1] for rule in rules if rule.stance == "permit"}
    forbidden = {rule.text.split()[-1] for rule in rules if rule.stance != "permit"}
    return bool(said & (forbidden - excused))


def test_a_tie_is_half_a_win():
    assert wins(np.array([1.0, 2.0]), np.array([1.0, 1.0]))[0] == 0.75


def test_the_interval_of_wins_holds_the_share():
    share, (low, high) = wins(np.arange(100) % 3.0, np.ones(100))
    assert low < share < high


def test_the_better_answer_is_the_one_with_the_lower_risk():
    better, worse = [make_row("a")], [make_row("b")]
    found = pairs(better, worse, by_id({"a": 0.2, "b": 0.8}))
    assert (found.n, found.accuracy) == (1, 1.0)
    assert found.delta == pytest.approx(2 * np.log(4))


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="1 better rows, 0 worse"):
        pairs([make_row("a")], [], by_id({"a": 0.5}))


def test_an_order_is_right_where_the_violation_scores_higher():
    rows = [make_row(f"x-{kind}") for kind in ("violating", "compliant", "lenient")]
    found = orders(rows, by_id({"x-violating": 0.6, "x-compliant": 0.7, "x-lenient": 0.1}))
    assert found["violating over compliant"].accuracy == 0.0
    assert found["violating over lenient"].accuracy == 1.0
    assert "strict over compliant" not in found


def test_a_flip_counts_only_if_both_sides_are_right():
    rows = [make_row(f"{stem}-{kind}") for stem in "xy" for kind in ("violating", "lenient")]
    scores = {"x-violating": 0.9, "x-lenient": 0.1, "y-violating": 0.9, "y-lenient": 0.8}
    found = flips(rows, by_id(scores))
    assert (found.n, found.accuracy, found.either) == (2, 0.5, 0.75)


def test_a_model_that_ignores_the_rule_flips_nothing():
    rows = [make_row(f"x-{kind}", "same text") for kind in ("violating", "lenient", "strict", "compliant")]
    assert flips(rows, by(lambda row: "same" in row.messages[-1].content)).accuracy == 0.0


CATEGORIES = [Category(word, f"no {word}", f"may {word}") for word in ("guns", "drugs", "slurs")]
LABELLED = [(make_row(f"{word}-{i}", f"about {word} {i}"), word) for word in ("guns", "drugs", "slurs") for i in "ab"]


def test_leaving_a_rule_out_frees_its_category_and_no_other():
    found = configurations(LABELLED, CATEGORIES, by(obeys))
    assert (found.strict, found.left_out, found.allowed, found.other_shift, found.n) == (1.0, 0.0, 0.0, 0.0, 6)


def test_a_permission_that_frees_everything_shifts_the_others():
    def model(row: Row) -> bool:
        return all(rule.stance != "permit" for rule in row.policy.rules)

    found = configurations(LABELLED, CATEGORIES, by(model))
    assert (found.strict, found.left_out, found.allowed, found.other_shift) == (1.0, 1.0, 0.0, 1.0)


def test_rows_of_unknown_categories_are_not_counted():
    assert configurations([*LABELLED, (make_row("z"), "other")], CATEGORIES, by(obeys)).n == 6


def test_a_permission_wins_over_the_rule_that_it_contradicts():
    found = contradiction(LABELLED, CATEGORIES, by(obeys))
    assert (found.enforce, found.allow, found.both, found.n) == (1.0, 0.0, 0.0, 6)


LADDER = Ladder("c", {1: "mild", 2: "grave"}, {1: ("from 1",), 2: ("from 2",), 3: ("from 3",)})
RUNGS = [Rung(f"c-{level}", "c", level, (Message("assistant", f"level {level}"),)) for level in (0, 1, 2)]


def severity(rows: Sequence[Row]) -> np.ndarray:
    levels = [int(row.messages[-1].content[-1]) for row in rows]
    starts = [int(row.policy.rules[0].text[-1]) for row in rows]
    return np.array([1 / (1 + np.exp(s - level - 0.5)) for s, level in zip(starts, levels, strict=True)])


def test_a_model_that_knows_severity_climbs_every_ladder():
    found = ladders({"c": LADDER}, RUNGS, severity)
    assert (found.guidelines, found.boundary, found.levels, found.n) == (1.0, 1.0, pytest.approx(1.0), 3)


def test_a_model_that_has_it_backwards_climbs_none():
    found = ladders({"c": LADDER}, RUNGS, lambda rows: 1.0 - severity(rows))
    assert (found.guidelines, found.boundary, found.levels) == (0.0, 0.0, pytest.approx(-1.0))


def test_over_refusal_judges_a_compliant_answer_that_repeats_the_request():
    seen: list[str] = []

    def model(rows: Sequence[Row]) -> np.ndarray:
        seen.extend(row.messages[-1].content for row in rows)
        return np.array([0.9 if "kill" in row.messages[-1].content else 0.1 for row in rows])

    policy = make_row("p").policy
    found = over_refusal([("How to kill a process?", False), ("Kill him.", True), ("Poison him", True)], policy, model)
    assert seen[0] == "Sure. How to kill a process?"
    assert (found.false_positives, found.recall, found.n) == (1.0, 0.0, 3)


def test_the_probes_leave_the_rows_as_they_were():
    before = [replace(row) for row, _ in LABELLED]
    configurations(LABELLED, CATEGORIES, by(obeys))
    assert [row for row, _ in LABELLED] == before
