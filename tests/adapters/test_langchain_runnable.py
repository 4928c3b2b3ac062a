import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda

from csrm_guard import Blocked
from csrm_guard.checks import pii_check
from csrm_guard.testing import KeywordRewardModel
from csrm_guard_adapters.langchain import GuardRunnable
from tests.scripted import Scripted, guard, scripted

PROMPT = ChatPromptTemplate.from_messages([("system", "Be kind."), ("user", "{q}")])


def ask(kind: str, asked: Any, value: Any) -> Any:
    """Run a runnable; of a stream, return the sum of its chunks."""
    if kind == "sync":
        return asked.invoke(value)
    if kind == "async":
        return asyncio.run(asked.ainvoke(value))
    if kind == "batch":
        return asked.batch([value])[0]
    if kind == "abatch":
        return asyncio.run(asked.abatch([value]))[0]
    chunks: list[Any] = []

    async def collect() -> None:
        async for chunk in asked.astream(value):
            chunks.append(chunk)

    if kind == "stream":
        chunks = list(asked.stream(value))
    else:
        asyncio.run(collect())
    found = chunks[0]
    for chunk in chunks[1:]:
        found += chunk
    return found


every = pytest.mark.parametrize("kind", ["sync", "async", "batch", "abatch", "stream", "astream"])


@every
@pytest.mark.parametrize(
    "value",
    [
        "How?",
        HumanMessage("How?"),
        [HumanMessage("How?")],
        [("user", "How?")],
        PROMPT.invoke({"q": "How?"}),
        PromptTemplate.from_template("{q}").invoke({"q": "How?"}),
        ToolMessage("a kettle", tool_call_id="1"),
    ],
    ids=["text", "message", "messages", "tuples", "chat prompt", "text prompt", "tool result"],
)
def test_an_allowed_prompt_passes_as_it_came(kind: str, value: Any):
    assert ask(kind, GuardRunnable(guard()), value) is value


@every
@pytest.mark.parametrize(
    "value",
    [
        "a bomb",
        HumanMessage("a bomb"),
        [HumanMessage("a bomb"), HumanMessage("Go on.")],
        PROMPT.invoke({"q": "a bomb"}),
        ToolMessage("a bomb", tool_call_id="1"),
    ],
    ids=["text", "message", "turns in a row", "chat prompt", "tool result"],
)
def test_a_blocked_prompt_raises(kind: str, value: Any):
    with pytest.raises(Blocked):
        ask(kind, GuardRunnable(guard()), value)


@every
@pytest.mark.parametrize(
    ("value", "expected"),
    [("a bomb", "Sorry."), (HumanMessage("a bomb"), AIMessage), (PROMPT.invoke({"q": "a bomb"}), AIMessage)],
    ids=["text", "message", "chat prompt"],
)
def test_a_blocked_prompt_may_be_answered(kind: str, value: Any, expected: Any):
    found = ask(kind, GuardRunnable(guard(), on_block="return"), value)
    assert getattr(found, "content", found) == "Sorry."
    assert found == expected or isinstance(found, expected)


def test_a_fallback_cannot_answer_a_prompt_on_its_way_to_the_model():
    with pytest.raises(Blocked):
        GuardRunnable(guard("fallback")).invoke("a bomb")


@every
def test_an_old_violation_does_not_block(kind: str):
    talk = [HumanMessage("a bomb"), AIMessage("Sorry."), HumanMessage("A kettle?")]
    assert ask(kind, GuardRunnable(guard()), talk) is talk


@every
def test_what_a_check_found_is_cut_from_a_prompt(kind: str):
    made = guard("redact", pii_check("email"))
    found = ask(kind, PROMPT | GuardRunnable(made), {"q": "Write to a@b.com now."})
    assert [m.content for m in found.to_messages()] == ["Be kind.", "Write to [removed] now."]
    assert ask(kind, GuardRunnable(made), "Write to a@b.com now.") == "Write to [removed] now."


@every
def test_an_allowed_answer_keeps_its_usage_and_gets_its_verdict(kind: str):
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    said = AIMessage("fine", usage_metadata=usage)
    found = ask(kind, GuardRunnable(guard()), said)
    assert (found.content, found.usage_metadata["total_tokens"]) == ("fine", 3)
    assert [note["allowed"] for note in found.response_metadata["csrm_guard"]] == [True]


@every
def test_a_blocked_answer_raises_or_is_the_policys(kind: str):
    chain = PROMPT | scripted("All is well. Take a bomb. More.")
    with pytest.raises(Blocked):
        ask(kind, chain | GuardRunnable(guard()), {"q": "How?"})
    found = ask(kind, chain | GuardRunnable(guard(), on_block="return"), {"q": "How?"})
    assert "Take" not in found.content
    assert found.content.endswith("Sorry.")
    assert found.response_metadata["finish_reason"] == "content_filter"


@every
def test_a_fallback_is_an_answer(kind: str):
    found = ask(kind, scripted("a bomb") | GuardRunnable(guard("fallback")), "How?")
    assert (found.content, found.response_metadata["finish_reason"]) == ("Sorry.", "stop")


@every
def test_a_text_after_a_parser_is_judged_as_an_answer(kind: str):
    chain = scripted("All is well. Take a bomb. More.") | StrOutputParser()
    found = ask(kind, chain | GuardRunnable(guard(), stage="response", on_block="return"), "How?")
    assert "Take" not in found
    assert found.endswith("Sorry.")


@every
def test_the_arguments_of_a_tool_call_are_judged(kind: str):
    call = {"name": "build", "args": {"what": "a bomb"}, "id": "1"}
    chain = scripted(AIMessage("", tool_calls=[call])) | GuardRunnable(guard(), on_block="return")
    found = ask(kind, chain, "How?")
    assert (found.content, found.tool_calls) == ("Sorry.", [])


@every
def test_an_answer_is_judged_with_the_talk_before_it(kind: str):
    talk = [HumanMessage("How?"), AIMessage("a bomb")]
    found = ask(kind, GuardRunnable(guard(), on_block="return"), talk)
    assert [m.content for m in found] == ["How?", "Sorry."]


class Counting(KeywordRewardModel):
    """Counts how often it was asked."""

    passes = 0

    def score(self, requests):
        self.passes += 1
        return super().score(requests)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_batch_is_judged_in_one_pass(kind: str):
    made = guard()
    made.model = Counting("bomb")
    chain = PROMPT | GuardRunnable(made) | (lambda prompt: prompt.to_messages()[-1].content)
    values = [{"q": "a"}, {"q": "b"}, {"q": "c"}]
    found = chain.batch(values) if kind == "sync" else asyncio.run(chain.abatch(values))
    assert (found, made.model.passes) == (["a", "b", "c"], 1)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_block_in_a_batch_may_be_returned_in_its_place(kind: str):
    step, values = GuardRunnable(guard()), ["a", "a bomb", 5, "b"]
    options = {"return_exceptions": True}
    found = step.batch(values, **options) if kind == "sync" else asyncio.run(step.abatch(values, **options))
    assert [type(f) for f in found] == [str, Blocked, TypeError, str]
    with pytest.raises(Blocked):
        step.batch(["a", "a bomb"])


def test_what_is_not_said_in_a_chat_is_refused():
    with pytest.raises(TypeError, match="put it after the prompt template"):
        GuardRunnable(guard()).invoke({"q": "How?"})


def test_an_answer_streams_sentence_by_sentence():
    chain = scripted("All is well. Goodbye now. The end.") | GuardRunnable(guard())
    assert len([chunk for chunk in chain.stream("How?") if chunk.content]) > 3


def test_the_model_is_not_read_on_after_a_block():
    model = scripted("Take a bomb. " + "And more. " * 50)
    list((model | GuardRunnable(guard(), on_block="return")).stream("How?"))
    assert len(model.sent) < 6


def test_the_model_is_not_read_on_after_a_block_in_asyncio():
    read: list[str] = []

    async def words(value: AsyncIterator[Any]) -> AsyncIterator[AIMessageChunk]:
        async for _ in value:
            for word in ("Take ", "a ", "bomb. ", "And ", "more. ", "And ", "more."):
                read.append(word)
                yield AIMessageChunk(word)

    async def run() -> list[Any]:
        step = GuardRunnable(guard(), on_block="return")

        async def alone() -> AsyncIterator[str]:
            yield "How?"

        return [chunk async for chunk in step.atransform(words(alone()))]

    assert asyncio.run(run())[-1].content == "Sorry."
    assert "And " not in read[4:]


def test_a_reader_that_leaves_closes_the_model():
    model = scripted("All is well. " * 50)
    stream = (model | GuardRunnable(guard())).stream("How?")
    next(stream)
    stream.close()
    assert len(model.sent) < 10


class Down(Scripted):
    """Is not there."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise OSError("gone")


def test_a_block_is_not_retried_where_the_exceptions_are_named():
    other = scripted("from the other")
    chain = scripted("a bomb") | GuardRunnable(guard())
    with pytest.raises(Blocked):
        chain.with_fallbacks([other], exceptions_to_handle=(OSError,)).invoke("How?")
    assert other.asked == []


def test_an_error_is_retried_where_the_exceptions_are_named():
    chain = (Down() | GuardRunnable(guard())).with_fallbacks([scripted("other")], exceptions_to_handle=(OSError,))
    assert chain.invoke("How?").content == "other"


def test_a_block_is_retried_when_it_is_asked_for():
    chain = scripted("a bomb") | GuardRunnable(guard())
    other = scripted("better") | GuardRunnable(guard())
    assert chain.with_fallbacks([other], exceptions_to_handle=(Blocked,)).invoke("How?").content == "better"


def test_an_answered_block_is_not_retried_even_by_default():
    other = scripted("from the other")
    chain = scripted("a bomb") | GuardRunnable(guard(), on_block="return")
    assert chain.with_fallbacks([other]).invoke("How?").content == "Sorry."
    answered = (GuardRunnable(guard()) | scripted("fine")).with_fallbacks(
        [RunnableLambda(lambda _: AIMessage("No."))], exceptions_to_handle=(Blocked,)
    )
    assert answered.with_fallbacks([other]).invoke("a bomb").content == "No."
    assert other.asked == []


def test_fallbacks_inside_a_chain_are_all_judged():
    step = GuardRunnable(guard(), on_block="return")
    chain = step | Down().with_fallbacks([scripted("a bomb")]) | step
    assert chain.invoke("How?").content == "Sorry."


def test_a_stream_that_blocks_ends_with_the_exception():
    seen: list[str] = []

    def read(chunks: Iterator[Any]) -> None:
        for chunk in chunks:
            seen.append(chunk.content)

    with pytest.raises(Blocked):
        read((scripted("All is well. Take a bomb. More.") | GuardRunnable(guard())).stream("How?"))
    assert "".join(seen).strip() == "All is well."


@given(
    sentences=st.lists(st.sampled_from(["All is well. ", "Take a bomb. ", "Tea!\n", "And so on "]), max_size=8),
    cuts=st.lists(st.integers(0, 100), max_size=20),
    as_text=st.booleans(),
    fast=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_whatever_the_chunks_nothing_of_a_violating_sentence_leaves(
    sentences: list[str], cuts: list[int], as_text: bool, fast: bool
):
    text = "".join(sentences)
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(ends)]
    step = GuardRunnable(guard(), stage="response", on_block="return")
    chunks = pieces if as_text else [AIMessageChunk(piece) for piece in pieces]
    found = list(step.transform(iter(chunks))) if fast else asyncio.run(collected(step, chunks))
    seen = "".join(chunk if as_text else chunk.content for chunk in found)
    before = text.partition("Take")[0]
    if "bomb" in text:
        assert seen.endswith("Sorry.")
        assert before.startswith(seen.removesuffix("Sorry."))
    else:
        assert seen == text


async def collected(step: GuardRunnable, chunks: list[Any]) -> list[Any]:
    async def source() -> AsyncIterator[Any]:
        for chunk in chunks:
            yield chunk

    return [chunk async for chunk in step.atransform(source())]
