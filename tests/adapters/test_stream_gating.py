"""Streams through the adapters, cut anywhere: what leaves, and how much of the upstream is read after a block."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent

from csrm_guard import Guard, Policy
from csrm_guard.testing import KeywordRewardModel, Reply
from csrm_guard.testing_bodies import chat_chunks, response_events
from csrm_guard_adapters.langchain import GuardedChatModel
from csrm_guard_adapters.openai import guard_client
from tests.scripted import scripted

SENTENCES = ["All is well. ", "Take a bomb. ", "Tea!\n", "Is it 3.5 litres? ", "And so on "]
ANSWERS = st.lists(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=7).map("".join), min_size=1, max_size=3)


class Upstream:
    """A vendor's stream that counts what was taken from it."""

    def __init__(self, events: Sequence[Any]) -> None:
        self.events, self.taken, self.closed = events, 0, False

    def __iter__(self) -> Iterator[Any]:
        for event in self.events:
            self.taken += 1
            yield event

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in self:
            yield event

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


class Judge(KeywordRewardModel):
    """Finds bombs, and remembers how much had been taken when it last found one."""

    def __init__(self, taken: Callable[[], int]) -> None:
        super().__init__("bomb")
        self.taken, self.found = taken, 0

    def score(self, requests: Any) -> Any:
        readings = super().score(requests)
        if any(reading.q.max() > 0.5 for reading in readings):
            self.found = self.taken()
        return readings


def guard_of(taken: Callable[[], int]) -> tuple[Guard, Judge]:
    rule = {"id": "kind", "text": "Be kind.", "stages": ["prompt", "response", "tool_call"]}
    judge = Judge(taken)
    return Guard(Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [rule]}), judge), judge


def client_of(upstream: Upstream, *, asynchronous: bool) -> Any:
    """Return a client of OpenAI's shape that answers with a stream."""

    def create(**_: Any) -> Upstream:
        return upstream

    async def acreate(**_: Any) -> Upstream:
        return upstream

    made = acreate if asynchronous else create
    endpoint = SimpleNamespace(create=made)
    return SimpleNamespace(chat=SimpleNamespace(completions=endpoint), responses=endpoint)


def collected(found: Any) -> list[Any]:
    """Return the events of a guarded call, of either kind."""
    if not asyncio.iscoroutine(found):
        return list(found)

    async def read() -> list[Any]:
        return [event async for event in await found]

    return asyncio.run(read())


@settings(max_examples=150, deadline=None)
@given(ANSWERS, st.integers(1, 30), st.booleans())
def test_a_chat_stream_is_left_within_one_chunk_of_its_last_block(texts: list[str], piece: int, asynchronous: bool):
    reply = Reply(tuple(texts), piece=piece)
    upstream = Upstream([ChatCompletionChunk.model_validate(chunk) for chunk in chat_chunks({}, reply)])
    guard, judge = guard_of(lambda: upstream.taken)
    call = guard_client(client_of(upstream, asynchronous=asynchronous), guard).chat.completions.create
    messages = [{"role": "user", "content": "How?"}]
    chunks = collected(call(model="m", messages=messages, n=len(texts), stream=True))
    for i, text in enumerate(texts):
        said = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == i)
        before, bad, _ = text.partition("Take")
        assert before.startswith(said) if bad else said == text
    assert upstream.closed
    if all("bomb" in text for text in texts):
        assert upstream.taken <= judge.found + 1
    elif not any("bomb" in text for text in texts):
        assert upstream.taken == len(upstream.events)


@settings(max_examples=150, deadline=None)
@given(ANSWERS, st.integers(1, 30), st.booleans())
def test_a_response_stream_is_left_within_one_event_of_its_block(texts: list[str], piece: int, asynchronous: bool):
    events = [
        construct_type(value=event, type_=ResponseStreamEvent)
        for event in response_events({}, Reply(tuple(texts), piece=piece))
    ]
    upstream = Upstream(events)
    guard, judge = guard_of(lambda: upstream.taken)
    call = guard_client(client_of(upstream, asynchronous=asynchronous), guard).responses.create
    found = collected(call(model="m", input="How?", stream=True))
    assert "bomb" not in repr(found)
    assert upstream.closed
    if any("bomb" in text for text in texts):
        assert upstream.taken <= judge.found + 1
    else:
        assert [event.type for event in found] == [event.type for event in events]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=7).map("".join), st.booleans())
def test_a_langchain_stream_is_left_within_one_chunk_of_its_block(text: str, asynchronous: bool):
    inner = scripted(text)
    guard, judge = guard_of(lambda: len(inner.sent))
    model = GuardedChatModel(model=inner, guard=guard)

    async def read() -> list[Any]:
        return [chunk async for chunk in model.astream("How?")]

    chunks = asyncio.run(read()) if asynchronous else list(model.stream("How?"))
    said = "".join(str(chunk.content) for chunk in chunks)
    if "bomb" in text:
        assert text.partition("Take")[0].startswith(said.removesuffix("Sorry."))
        assert len(inner.sent) <= judge.found + 1
    else:
        assert said == f"{text} "


@pytest.mark.parametrize("mode", ["sampled", "end"])
def test_in_the_other_modes_the_upstream_is_left_at_the_block_too(mode: Any):
    text = "Fine. Take a bomb. " + "More. " * 100
    upstream = Upstream([ChatCompletionChunk.model_validate(chunk) for chunk in chat_chunks({}, Reply((text,)))])
    guard, judge = guard_of(lambda: upstream.taken)
    client = guard_client(client_of(upstream, asynchronous=False), guard, stream=mode, every=40)
    chunks = collected(client.chat.completions.create(model="m", messages=[], stream=True))
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert upstream.taken <= judge.found + 1
    assert upstream.closed
