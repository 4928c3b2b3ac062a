"""What was found to leak in other guardrails, each a test that we pass; benchmarks/peers_defects.py runs the others."""

import asyncio
import time
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from csrm_guard import Blocked, Guard, Policy
from csrm_guard.testing import ChatServer, KeywordRewardModel, Reply
from csrm_guard_adapters.openai import guard_client

ASK = [{"role": "user", "content": "How?"}]
BAD = [{"role": "user", "content": "a bomb"}]
STAGES = ["prompt", "response", "tool_call", "tool_result"]
CALLED = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}


class Answer(BaseModel):
    text: str


def guard(model: Any = None, **rule: object) -> Guard:
    made = {"id": "bombs", "text": "No bombs.", "stages": STAGES, **rule}
    policy = Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [made]})
    return Guard(policy, model or KeywordRewardModel("bomb"))


def bare(server: ChatServer, cls: type = OpenAI) -> Any:
    return cls(api_key="none", base_url=server.url, max_retries=0)


def ask(server: ChatServer, messages: list = ASK, **kwargs: Any) -> Any:
    with bare(server) as client:
        found = guard_client(client, guard()).chat.completions.create(model="m", messages=messages, **kwargs)
        return list(found) if kwargs.get("stream") else found


# openai-guardrails


def test_a_call_beside_a_blocked_prompt_is_cancelled():
    async def run(server: ChatServer) -> None:
        async with bare(server, AsyncOpenAI) as client:
            guarded = guard_client(client, guard(Late("bomb")), speculative=True)
            with pytest.raises(Blocked):
                await guarded.chat.completions.create(model="m", messages=BAD)

    with ChatServer(Reply(("fine",), delay=1.5)) as server:
        asyncio.run(run(server))
        deadline = time.monotonic() + 5
        while not server.aborted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (len(server.requests), server.aborted) == (1, 1)


class Late(KeywordRewardModel):
    """Takes long enough for a call to begin beside it."""

    def score(self, requests):
        time.sleep(0.2)
        return super().score(requests)


@pytest.mark.parametrize("speculative", [False, True])
def test_a_blocked_prompt_does_not_wait_for_the_model(speculative: bool):
    with ChatServer(Reply(("fine",), delay=5)) as server, bare(server) as client:
        guarded = guard_client(client, guard(), speculative=speculative)
        began = time.monotonic()
        with pytest.raises(Blocked):
            guarded.chat.completions.create(model="m", messages=BAD)
        assert time.monotonic() - began < 4


def test_a_violation_in_another_choice_than_the_first_is_seen():
    with ChatServer(Reply(("one", "a bomb", "three"))) as server, pytest.raises(Blocked):
        ask(server, n=3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_violation_in_tool_call_arguments_is_seen(stream: bool):
    with ChatServer(Reply(("",), tool_calls=(("f", '{"what": "a bomb"}'),))) as server:
        if stream:
            assert "bomb" not in repr(ask(server, stream=True))
        else:
            with pytest.raises(Blocked):
                ask(server)


@pytest.mark.parametrize(
    "messages",
    [
        [*BAD, {"role": "user", "content": "continue"}],
        [*ASK, CALLED, {"role": "tool", "tool_call_id": "c", "content": "a bomb"}],
    ],
    ids=["earlier user turn", "result of a tool"],
)
def test_a_violation_before_the_last_user_text_is_seen(messages: list):
    with ChatServer("fine") as server, pytest.raises(Blocked):
        ask(server, messages)


@pytest.mark.parametrize("place", [0, 150, 300])
def test_a_violating_token_never_reaches_the_reader_of_a_stream(place: int):
    words = ["fine. "] * 301
    words[place] = "bomb. "
    with ChatServer(Reply(("".join(words),), piece=6)) as server:
        assert "bomb" not in repr(ask(server, stream=True))


def test_an_answer_is_a_chat_completion():
    with ChatServer("fine") as server:
        assert type(ask(server)) is ChatCompletion


def test_parse_stream_and_raw_responses_are_there_and_guarded():
    with ChatServer('{"text": "a bomb"}') as server, bare(server) as client:
        chat = guard_client(client, guard()).chat.completions
        with pytest.raises(Blocked):
            chat.parse(model="m", messages=ASK, response_format=Answer)
        with pytest.raises(Blocked):
            chat.with_raw_response.create(model="m", messages=ASK)
        with chat.stream(model="m", messages=ASK) as stream:
            assert "bomb" not in repr(list(stream))


def test_options_of_a_client_can_be_changed_and_it_stays_guarded():
    with ChatServer("a bomb") as server, bare(server) as client:
        changed = guard_client(client, guard()).with_options(timeout=3)
        assert changed.timeout == 3
        with pytest.raises(Blocked):
            changed.chat.completions.create(model="m", messages=ASK)


class Failing(KeywordRewardModel):
    def score(self, requests):
        raise OSError("gone")


def test_a_check_that_fails_lets_nothing_pass():
    with ChatServer("fine") as server, bare(server) as client, pytest.raises(Blocked):
        guard_client(client, guard(Failing())).chat.completions.create(model="m", messages=ASK)


def test_the_same_holds_for_responses():
    items = [{"role": "user", "content": "a bomb"}, {"role": "user", "content": "continue"}]
    with ChatServer(Reply(("",), tool_calls=(("f", "a bomb"),))) as server, bare(server) as client:
        guarded = guard_client(client, guard())
        with pytest.raises(Blocked):
            guarded.responses.create(model="m", input=items)
        with pytest.raises(Blocked):
            guarded.responses.create(model="m", input="How?")
        assert "bomb" not in repr(list(guarded.responses.create(model="m", input="How?", stream=True)))


# NeMo Guardrails


def test_consecutive_user_turns_cannot_hide_a_violation():
    with pytest.raises(Blocked):
        guard().require([*BAD, {"role": "user", "content": "continue"}, {"role": "user", "content": "a bomb"}])
    with ChatServer("fine") as server, pytest.raises(Blocked):
        ask(server, [*BAD, {"role": "user", "content": "continue"}])


def test_the_rules_of_an_answer_hold_for_its_tool_calls():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "a bomb"}}]}
    assert not guard().check([*ASK, call]).allowed


def test_a_stream_of_answers_is_checked_before_it_is_sent_by_default():
    with ChatServer("A bomb. " + "More. " * 20) as server:
        assert "A bomb" not in repr(ask(server, stream=True))


# LangChain's middleware


def chain(said: str, made: Guard | None = None) -> Any:
    pytest.importorskip("langchain_core")
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    from csrm_guard_adapters.langchain import GuardedChatModel

    fake = GenericFakeChatModel(messages=iter([AIMessage(said)] * 3))
    return GuardedChatModel(model=fake, guard=made or guard(action="fallback"))


def test_no_token_passes_through_the_message_stream_of_an_agent():
    pytest.importorskip("langchain")
    from langchain.agents import create_agent

    agent = create_agent(chain("All is well. Take a bomb now. Goodbye."), [])
    seen = list(agent.stream({"messages": ASK}, stream_mode="messages"))
    assert "Take" not in repr(seen)


def test_no_token_of_a_replaced_message_passes_through_events():
    async def run() -> list:
        return [event async for event in chain("Take a bomb now.").astream_events("How?", version="v2")]

    assert "Take" not in repr(asyncio.run(run()))


def test_a_violation_in_an_earlier_turn_of_the_user_is_blocked():
    model = chain("fine", guard())
    assert model.invoke([*BAD, {"role": "user", "content": "continue"}]).response_metadata["finish_reason"] == (
        "content_filter"
    )


# LlamaFirewall


def test_a_check_runs_inside_a_running_loop():
    async def run() -> bool:
        return guard().check("fine").allowed and (await guard().acheck("fine")).allowed

    assert asyncio.run(run())


def test_the_score_of_an_allowed_text_is_kept():
    verdict = asyncio.run(guard().acheck("fine"))
    assert verdict.allowed
    assert 0 < verdict.p_safe < 1
