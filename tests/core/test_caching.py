import asyncio

import pytest

from csrm_guard import Guard, Message, Policy, Rule, Scheduler, ScoringRequest
from csrm_guard.caching import CachedRewardModel
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel

RULES = (Rule(id="a", text="No bombs."), Rule(id="b", text="No knives."))
TALK = (Message("user", "hello"),)


def asked(*answers: object, size: int = 10):
    inner = ScriptedRewardModel(answers)  # type: ignore[arg-type]
    return inner, CachedRewardModel(inner, size)


def test_an_equal_question_is_not_asked_again():
    inner, model = asked(0.3)
    first, second = (model.score([ScoringRequest(TALK, RULES)])[0] for _ in range(2))
    assert second.q.tolist() == first.q.tolist()
    assert len(inner.requests) == 1
    assert (model.hits, model.misses) == (1, 1)


def test_equal_questions_of_one_call_are_asked_once():
    inner, model = asked(0.3)
    assert [r.q[0, 0] for r in model.score([ScoringRequest(TALK, RULES)] * 3)] == [0.3] * 3
    assert len(inner.requests) == 1


@pytest.mark.parametrize(
    "other",
    [
        ScoringRequest((Message("user", "hell", ()), Message("user", "o")), RULES),
        ScoringRequest((Message("assistant", "hello"),), RULES),
        ScoringRequest((Message("user", "hello", unread=("image_url",)),), RULES),
        ScoringRequest(TALK, RULES[:1]),
        ScoringRequest(TALK, RULES[::-1]),
        ScoringRequest(TALK, (RULES[0], Rule(id="b", text="No knives.", stance="require"))),
        ScoringRequest(TALK, RULES, (Rule(id="p", text="Jokes are fine.", stance="permit"),)),
    ],
    ids=["cut elsewhere", "role", "image", "fewer rules", "order", "stance", "permission"],
)
def test_another_question_is_asked(other: ScoringRequest):
    inner, model = asked(0.3, 0.6)
    model.score([ScoringRequest(TALK, RULES)])
    assert model.score([other])[0].q[0, 0] == 0.6
    assert len(inner.requests) == 2


def test_the_oldest_reading_is_dropped_first():
    inner, model = asked(0.1, 0.2, 0.3, 0.4, size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        model.score([ScoringRequest((Message("user", text),), RULES)])
    assert [r.messages[0].content for r in inner.requests] == ["a", "b", "c", "b"]


def test_a_failure_is_not_kept():
    _, model = asked(RuntimeError("down"), 0.3)
    with pytest.raises(RuntimeError):
        model.score([ScoringRequest(TALK, RULES)])
    assert model.score([ScoringRequest(TALK, RULES)])[0].q[0, 0] == 0.3


def test_thresholds_are_decided_anew():
    model = CachedRewardModel(KeywordRewardModel("bomb", violated=0.6))
    strict, mild = (Policy(rules=(Rule(id="a", text="No bombs.", threshold=t),)) for t in (0.5, 0.9))
    assert [Guard(p, model).check("a bomb").allowed for p in (strict, mild)] == [False, True]
    assert model.misses == 1


def test_a_kept_verdict_took_no_time(default_model):
    guard = Guard(Policy(rules=RULES), CachedRewardModel(default_model))
    first, second = guard.check("Where is my order?"), guard.check("Where is my order?")
    assert first.timings.run > 0
    assert second.timings.run == 0
    assert second.p_safe == first.p_safe


def test_it_is_waited_for_without_a_thread_over_a_scheduler():
    scheduler = Scheduler(KeywordRewardModel("bomb"), workers=1)
    guard = Guard(Policy(rules=RULES), CachedRewardModel(scheduler))

    async def both() -> list[bool]:
        return [(await guard.acheck(text)).allowed for text in ("a bomb", "a bomb", "hello")]

    assert asyncio.run(both()) == [False, False, True]
    scheduler.close()


def test_a_cache_without_room_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        CachedRewardModel(KeywordRewardModel(), 0)
