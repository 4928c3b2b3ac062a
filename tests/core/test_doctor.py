import pytest

from csrm_guard.doctor import self_test
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel


def test_a_model_that_tells_the_pair_apart_passes():
    found = self_test(KeywordRewardModel("promise"))
    assert found.passed
    assert found.keeping > found.breaking


@pytest.mark.parametrize("answers", [(0.5, 0.5), (0.1, 0.9), (0.5, 0.45)], ids=["equal", "turned", "close"])
def test_a_model_that_does_not_tell_the_pair_apart_fails(answers):
    assert not self_test(ScriptedRewardModel(answers)).passed


@pytest.mark.parametrize(("answers", "word"), [((0.9, 0.1), "passed"), ((0.1, 0.9), "FAILED")])
def test_the_outcome_is_described_with_both_rewards(answers, word):
    line = self_test(ScriptedRewardModel(answers)).describe()
    assert line.startswith(f"{word}: reward ")
    assert "+2.20" in line
    assert "-2.20" in line


@pytest.mark.slow
def test_the_shipped_model_passes(default_model):
    found = self_test(default_model)
    assert found.passed, found.describe()
