from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from csrm_guard.calibration import Calibration
from csrm_guard.messages import Message
from csrm_guard.model import Reading, ScoringRequest
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel
from csrm_guard_train.evaluation import NEUTRAL, EvaluationError, blind, constants, evaluate, score_rows, shuffled

WORDS = ["apple", "pear", "plum", "fig", "lime", "grape"]


class ReadingModel:
    """Finds a rule violated if the message holds the rule's last word: it reads the policy."""

    id = "reading"

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        return [Reading(np.array([[self._q(r, rule) for rule in r.rules]]), ((0, 1),)) for r in requests]

    def threshold_at(self, fpr: float) -> float:
        return 0.5

    def _q(self, request: ScoringRequest, rule: Rule) -> float:
        return 0.9 if rule.text.split()[-1] in request.messages[-1].content else 0.1


def make_rows() -> list[Row]:
    found = []
    for i, word in enumerate(WORDS * 4):
        broken = (i // len(WORDS)) % 2 == 0
        said = word if broken else WORDS[(i + 1) % len(WORDS)]
        policy = Policy(name=word, rules=(Rule(id="r", text=f"never say {word}"),))
        message = Message("assistant", f"I like {said}")
        found.append(Row(str(i), policy, (message,), "response", broken, ("r",) if broken else (), "last message"))
    return found


def test_a_model_that_reads_is_right_only_under_the_real_policy():
    found = evaluate(make_rows(), ReadingModel(), rounds=20)
    assert found["real"]["auroc"] == 1.0
    assert found["policy_blind"]["auroc"] == 0.5
    assert found["shuffled_policy"]["auroc"] < 0.8


def test_a_model_that_does_not_read_gains_nothing():
    found = evaluate(make_rows(), KeywordRewardModel("apple"), rounds=20)
    assert found["auroc_gain_over_blind"] == 0.0


def test_blind_rows_carry_one_neutral_sentence():
    assert {r.text for row in blind(make_rows()) for r in row.policy.rules} == {NEUTRAL}


def test_shuffled_rows_carry_rules_of_others():
    rows = make_rows()
    assert all(a.policy != b.policy for a, b in zip(rows, shuffled(rows, 0), strict=True))


def test_constants_score_by_prevalence_alone():
    found = constants(np.array([1.0, 1.0, 1.0, 0.0]))
    assert found["always_unsafe"]["f1_unsafe"] == pytest.approx(6 / 7)
    assert found["always_safe"]["f1_unsafe"] == 0.0


def test_errors_before_calibration_are_reported_too():
    found = evaluate(make_rows(), ReadingModel(), rounds=5, calibration=Calibration(slope=2.0, intercept=0.0))
    assert found["real"]["ece_raw"] > found["real"]["ece"]


def test_the_highest_rule_of_a_violation_is_compared_with_the_label():
    rows = make_rows()
    two = (Rule(id="r", text="never say apple"), Rule(id="s", text="never say pear"))
    row = replace(rows[0], policy=Policy(rules=two))
    assert evaluate([row, rows[6]], ReadingModel(), rounds=5)["rules"]["top_rule_accuracy"] == 1.0


@pytest.mark.parametrize("change", [{"label": None}, {"policy": None}], ids=["label", "policy"])
def test_a_row_that_cannot_be_evaluated_is_named(change: dict[str, None]):
    with pytest.raises(EvaluationError, match="row '0'"):
        evaluate([replace(make_rows()[0], **change)], ReadingModel())


@pytest.mark.filterwarnings("default")
def test_a_row_that_was_not_scored_is_not_counted():
    with pytest.raises(EvaluationError, match="boom"):
        score_rows(make_rows()[:1], ScriptedRewardModel([RuntimeError("boom")]))
