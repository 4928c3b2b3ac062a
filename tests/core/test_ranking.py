import math

import pytest

from csrm_guard import Guard, MessageError, Policy
from csrm_guard.ranking import Constrained, Product, Safest, rank
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel

POLICY = Policy.from_dict({
    "name": "p", "defaults": {"fallback": "Sorry."}, "rules": [{"id": "bombs", "text": "No bombs."}]
})  # fmt: skip


def verdicts(*q: float):
    guard = Guard(POLICY, ScriptedRewardModel(q))
    return guard.score(["x"] * len(q))


def order(ranking) -> list[int]:
    return [candidate.index for candidate in ranking.candidates]


def test_the_safest_comes_first():
    assert order(rank(["a", "b", "c"], verdicts(0.3, 0.1, 0.2))) == [1, 2, 0]


def test_equal_candidates_keep_their_order():
    assert order(rank(["a", "b"], verdicts(0.2, 0.2))) == [0, 1]


def test_what_the_policy_forbids_comes_last_however_helpful():
    found = rank(["a", "b"], verdicts(0.9, 0.4), Product(), helpfulness=[100.0, 0.1])
    assert order(found) == [1, 0]
    assert found.candidates[0].passed
    assert not found.candidates[1].passed


def test_the_product_weighs_safety_and_helpfulness():
    (v,) = verdicts(0.1)
    assert Product(a=2, b=1).score(v, 0.5) == pytest.approx(0.5 / (1 + math.exp(-(2 * math.log(9) + 1))))


def test_the_product_needs_helpfulness_of_one_sign():
    with pytest.raises(ValueError, match="H >= 0"):
        Product().score(verdicts(0.1)[0], -1.0)


def test_the_constrained_objective_takes_the_most_helpful_safe_enough():
    found = rank(["a", "b", "c"], verdicts(0.3, 0.1, 0.05), Constrained(0.8), helpfulness=[9, 2, 1])
    assert order(found) == [1, 2, 0]
    assert found.text == "b"


@pytest.mark.parametrize("objective", [Product(), Constrained()])
@pytest.mark.parametrize("h", [None, [float("nan")]])
def test_missing_helpfulness_is_an_error(objective, h):
    with pytest.raises(ValueError, match="needs helpfulness"):
        rank(["a"], verdicts(0.1), objective, helpfulness=h)


def test_other_lengths_are_an_error():
    with pytest.raises(ValueError, match="2 candidates, 1 verdicts"):
        rank(["a", "b"], verdicts(0.1), Safest())


def test_a_guard_ranks_answers_in_one_pass():
    model = ScriptedRewardModel([0.4, 0.1])
    found = Guard(POLICY, model).rerank("How?", ["first", "second"])
    assert order(found) == [1, 0]
    assert [[m.content for m in request.messages] for request in model.requests] == [
        ["How?", "first"],
        ["How?", "second"],
    ]
    assert {request.messages[-1].role for request in model.requests} == {"assistant"}


def test_where_none_passes_the_fallback_stands_in():
    found = Guard(POLICY, KeywordRewardModel("bomb")).rerank("How?", ["a bomb", "two bombs"])
    assert found.best is None
    assert found.text == "Sorry."
    assert len(found.candidates) == 2


def test_nothing_to_rank_is_an_error():
    with pytest.raises(MessageError, match="no candidates"):
        Guard(POLICY, KeywordRewardModel()).rerank("How?", [])
