import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from csrm_guard import Blocked, Guard
from csrm_guard.ranking import Constrained, Product
from csrm_guard.testing import ScriptedRewardModel
from csrm_guard_adapters.langchain import BestOfN, GuardRunnable
from tests.scripted import guard, scripted

USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}


def ask(kind: str, asked: Any, value: Any = "How?") -> AIMessage:
    if kind == "sync":
        return asked.invoke(value)
    if kind == "async":
        return asyncio.run(asked.ainvoke(value))
    return asked.batch([value])[0] if kind == "batch" else asyncio.run(asked.abatch([value]))[0]


def said(*texts: str) -> list[AIMessage]:
    return [AIMessage(text, usage_metadata=USAGE) for text in texts]


def judging(*q: float) -> Guard:
    """Return a guard that finds the first answer violating with q[0], and so on."""
    return Guard(guard().policy, ScriptedRewardModel(list(q)))


def candidates(found: AIMessage) -> list[dict[str, Any]]:
    return found.response_metadata["csrm_guard_candidates"]


every = pytest.mark.parametrize("kind", ["sync", "async", "batch", "abatch"])


@every
def test_the_safest_answer_is_returned(kind: str):
    class Told(ScriptedRewardModel):
        def _read(self, request):
            self._answers.append({"a": 0.3, "b": 0.1, "c": 0.2}[request.messages[-1].content])
            return super()._read(request)

    best = BestOfN(scripted(*said("a", "b", "c")), Guard(guard().policy, Told([])), 3)
    found = ask(kind, best)
    assert (found.content, found.response_metadata["csrm_guard"][0]["allowed"]) == ("b", True)


@every
def test_every_candidates_verdict_is_in_the_metadata_without_its_text(kind: str):
    found = ask(kind, BestOfN(scripted(*said("Bombard them.", "fine", "well")), guard(), 3))
    assert [c["allowed"] for c in candidates(found)] == [True, True, False]
    assert [c["chosen"] for c in candidates(found)] == [True, False, False]
    assert "Bombard" not in repr(found)


@every
def test_usage_counts_all_answers(kind: str):
    found = ask(kind, BestOfN(scripted(*said("a", "b", "c")), guard(), 3))
    assert found.usage_metadata == {"input_tokens": 3, "output_tokens": 6, "total_tokens": 9}


@every
def test_where_none_passes_the_fallback_stands_in(kind: str):
    found = ask(kind, BestOfN(scripted(*said("a bomb", "bombs")), guard(), 2))
    assert (found.content, found.response_metadata["finish_reason"]) == ("Sorry.", "content_filter")
    assert found.usage_metadata["total_tokens"] == 6


@every
def test_where_none_passes_the_block_may_be_raised(kind: str):
    with pytest.raises(Blocked):
        ask(kind, BestOfN(scripted("a bomb"), guard(), 2, on_block="raise"))


@every
def test_a_good_enough_answer_stops_the_drawing(kind: str):
    model = scripted("a", "b", "c")
    found = ask(kind, BestOfN(model, judging(0.4, 0.01), 3, good_enough=3.0))
    assert (found.content, len(model.asked)) == ("b", 2)


@every
def test_the_most_helpful_of_the_safe_ones_may_be_wanted(kind: str):
    def longest(messages: Any, texts: Any) -> list[float]:
        return [float(len(text)) for text in texts]

    model = scripted("ok", "Take a bomb and run far away.", "Boil the water first.")
    found = ask(kind, BestOfN(model, guard(), 3, objective=Constrained(tau=0.5), helpfulness=longest))
    assert found.content == "Boil the water first."
    assert max(c["helpfulness"] for c in candidates(found)) == len("Take a bomb and run far away.")


@every
def test_an_objective_without_helpfulness_is_an_error(kind: str):
    with pytest.raises(ValueError, match="Product needs helpfulness"):
        ask(kind, BestOfN(scripted("a"), guard(), 2, objective=Product()))


@every
def test_empty_answers_are_passed_over(kind: str):
    found = ask(kind, BestOfN(scripted("", "a bomb", "fine"), guard(), 3))
    assert found.content == "fine"


@every
def test_tool_calls_are_judged(kind: str):
    bad = AIMessage("", tool_calls=[{"name": "build", "args": {"what": "a bomb"}, "id": "1"}])
    good = AIMessage("", tool_calls=[{"name": "build", "args": {"what": "a kettle"}, "id": "2"}])
    assert ask(kind, BestOfN(scripted(bad, good), guard(), 2)).tool_calls[0]["id"] == "2"


def test_it_stands_in_a_chain():
    prompt = ChatPromptTemplate.from_messages([("user", "{q}")])
    chain = prompt | GuardRunnable(guard()) | BestOfN(scripted("a bomb", "fine"), guard(), 2) | StrOutputParser()
    assert chain.invoke({"q": "How?"}) == "fine"
    with pytest.raises(Blocked):
        chain.invoke({"q": "a bomb"})


def test_a_chain_that_returns_text_may_be_asked():
    assert BestOfN(scripted("fine") | StrOutputParser(), guard(), 2).invoke("How?").content == "fine"


def test_what_is_no_answer_is_an_error():
    with pytest.raises(TypeError, match="put parsers after it"):
        BestOfN(RunnableLambda(lambda _: {"a": 1}), guard(), 2).invoke("How?")


def test_no_answer_at_all_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        BestOfN(scripted("a"), guard(), 0)


def test_answers_that_are_not_chosen_reach_no_callback():
    async def events() -> list[str]:
        best = BestOfN(scripted(*said("Bombard them.", "fine")), guard(), 2)
        return [repr(event["data"]) async for event in best.astream_events("How?", version="v2")]

    seen = asyncio.run(events())
    assert any("fine" in event for event in seen)
    assert not any("Bombard" in event for event in seen)
