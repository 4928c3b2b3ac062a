import asyncio

import pytest

from csrm_guard import Guard, Policy
from csrm_guard.ranking import Constrained
from csrm_guard.sampling import abest_of_n, best_of_n
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel

POLICY = Policy.from_dict({
    "name": "p", "defaults": {"fallback": "Sorry."}, "rules": [{"id": "bombs", "text": "No bombs."}]
})  # fmt: skip


def source(*texts: str):
    left = list(texts)
    return lambda: left.pop(0)


def asource(*texts: str):
    left = list(texts)

    async def call() -> str:
        await asyncio.sleep(0)
        return left.pop(0)

    return call


def run(guard: Guard, kind: str, *texts: str, n: int, **options):
    if kind == "sync":
        return best_of_n(guard, "How?", source(*texts), n, **options)
    return asyncio.run(abest_of_n(guard, "How?", asource(*texts), n, **options))


both = pytest.mark.parametrize("kind", ["sync", "async"])


@both
def test_the_safest_of_n_is_returned_with_all_verdicts(kind: str):
    found = run(Guard(POLICY, ScriptedRewardModel([0.3, 0.1, 0.2])), kind, "a", "b", "c", n=3)
    assert found.text == "b"
    assert [c.text for c in found.candidates] == ["b", "c", "a"]


@both
def test_a_good_enough_candidate_stops_the_drawing(kind: str):
    model = ScriptedRewardModel([0.4, 0.01])
    found = run(Guard(POLICY, model), kind, "a", "b", "c", n=3, good_enough=3.0)
    assert found.text == "b"
    assert len(model.requests) == 2


@both
def test_rounds_are_judged_together(kind: str):
    model = ScriptedRewardModel([0.4, 0.01, 0.3])
    assert len(run(Guard(POLICY, model), kind, "a", "b", "c", n=3, good_enough=3.0, at_a_time=2).candidates) == 2


@both
def test_where_none_passes_the_fallback_stands_in(kind: str):
    found = run(Guard(POLICY, KeywordRewardModel("bomb")), kind, "bomb", "bomb 2", n=2)
    assert (found.best, found.text, len(found.candidates)) == (None, "Sorry.", 2)


@both
def test_empty_answers_are_passed_over(kind: str):
    found = run(Guard(POLICY, ScriptedRewardModel([0.2])), kind, "", "a", n=2)
    assert [c.text for c in found.candidates] == ["a"]


@both
def test_only_empty_answers_leave_the_fallback(kind: str):
    assert run(Guard(POLICY, KeywordRewardModel()), kind, "", " ", n=2).text == "Sorry."


@both
def test_helpfulness_is_asked_for_the_conversation_and_its_candidates(kind: str):
    asked = []

    def helpful(messages, candidates):
        asked.append(([m.content for m in messages], list(candidates)))
        return [len(text) for text in candidates]

    model = ScriptedRewardModel([0.3, 0.1])
    found = run(Guard(POLICY, model), kind, "longer", "b", n=2, objective=Constrained(), helpfulness=helpful)
    assert asked == [(["How?"], ["longer", "b"])]
    assert found.text == "longer"


@both
def test_an_error_of_the_model_reaches_the_caller(kind: str):
    with pytest.raises(IndexError):
        run(Guard(POLICY, KeywordRewardModel()), kind, "a", n=2)


def test_candidates_of_a_round_are_drawn_together():
    inside = most = 0

    async def call() -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return "x"

    asyncio.run(abest_of_n(Guard(POLICY, KeywordRewardModel()), "How?", call, 4))
    assert most == 4


@pytest.mark.parametrize(("n", "at_a_time"), [(0, None), (2, 0)])
def test_less_than_one_is_an_error(n: int, at_a_time: int | None):
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n(Guard(POLICY, KeywordRewardModel()), "How?", source(), n, at_a_time=at_a_time)
