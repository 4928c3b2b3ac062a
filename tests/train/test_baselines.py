"""TF-IDF and logistic regression: what words alone can tell."""

import numpy as np
import pytest

from csrm_guard.messages import Message
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row
from csrm_guard_train.baselines import cross_fitted, fit_predict
from csrm_guard_train.metrics import auroc


def make_row(i: int, said: str, unsafe: bool | None, rule: str = "no slang") -> Row:
    policy = Policy(rules=(Rule(id="r", text=rule),))
    return Row(str(i), policy, (Message("assistant", said),), "response", unsafe, None, "last message")


ROWS = [make_row(i, f"{'bad awful' if i % 2 else 'kind good'} words number {i // 4}", bool(i % 2)) for i in range(80)]
LABELS = np.array([float(bool(row.label)) for row in ROWS])


def test_words_that_give_the_label_away_are_found():
    assert auroc(LABELS, cross_fitted(ROWS, [str(i // 4) for i in range(80)])) == 1.0


def test_a_group_is_never_judged_by_a_model_that_saw_it():
    # The label follows from the group's own word alone: seen, it would be perfect; unseen, it is chance.
    rows = [make_row(i, f"secret{i // 2} said", bool(i // 2 % 2)) for i in range(80)]
    y = np.array([float(bool(row.label)) for row in rows])
    assert auroc(y, fit_predict(rows, rows)) == 1.0
    assert auroc(y, cross_fitted(rows, [str(i // 2) for i in range(80)])) <= 0.5


def test_rules_are_words_of_their_own():
    rows = [make_row(i, "the same", bool(i % 2), "never" if i % 2 else "always") for i in range(40)]
    groups = [str(i // 2) for i in range(40)]
    y = np.array([float(bool(row.label)) for row in rows])
    assert auroc(y, cross_fitted(rows, groups, reads="conversation and rules")) == 1.0
    assert auroc(y, cross_fitted(rows, groups)) == 0.5


def test_one_group_cannot_be_cross_fitted():
    with pytest.raises(ValueError, match="at least two groups"):
        cross_fitted(ROWS, ["one"] * 80)


def test_an_unlabelled_training_row_is_named():
    with pytest.raises(ValueError, match="row '99'"):
        fit_predict([*ROWS, make_row(99, "x", None)], ROWS)


def test_rows_of_one_label_teach_that_label():
    assert fit_predict([ROWS[1], ROWS[3]], ROWS[:2]).tolist() == [1.0, 1.0]
