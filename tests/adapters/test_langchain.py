import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_tests.unit_tests import ChatModelUnitTests

from csrm_guard import Blocked, Guard
from csrm_guard.checks import pii_check
from csrm_guard_adapters.langchain import GuardedChatModel
from csrm_guard_adapters.langchain_messages import as_message
from tests.scripted import Scripted, guard, scripted


def model(*answers: str | AIMessage, made: Guard | None = None, **options: Any) -> GuardedChatModel:
    return GuardedChatModel(model=scripted(*answers), guard=made or guard(), **options)


def ask(kind: str, asked: GuardedChatModel, messages: Any = "How?") -> BaseMessage:
    if kind == "sync":
        return asked.invoke(messages)
    if kind == "async":
        return asyncio.run(asked.ainvoke(messages))
    chunks: list[Any] = []
    if kind == "stream":
        chunks = list(asked.stream(messages))
    else:

        async def collect() -> list[Any]:
            return [chunk async for chunk in asked.astream(messages)]

        chunks = asyncio.run(collect())
    found = chunks[0]
    for chunk in chunks[1:]:
        found += chunk
    return found


every = pytest.mark.parametrize("kind", ["sync", "async", "stream", "astream"])


@every
def test_an_allowed_answer_passes(kind: str):
    assert ask(kind, model("All is well. Goodbye.")).content.strip() == "All is well. Goodbye."


@every
def test_a_blocked_prompt_is_answered_by_the_policy_and_never_sent(kind: str):
    asked = model("fine")
    found = ask(kind, asked, "a bomb")
    assert found.content == "Sorry."
    assert found.response_metadata["finish_reason"] == "content_filter"
    assert asked.model.asked == []


@every
def test_nothing_of_a_violating_sentence_leaves(kind: str):
    found = ask(kind, model("All is well. Take a bomb. More."))
    assert "Take" not in found.content
    assert found.content.endswith("Sorry.")
    assert found.response_metadata["finish_reason"] == "content_filter"


@every
def test_a_block_may_be_raised(kind: str):
    for messages, said in (("a bomb", "fine"), ("How?", "a bomb")):
        with pytest.raises(Blocked):
            ask(kind, model(said, on_block="raise"), messages)


@every
def test_tool_arguments_are_judged(kind: str):
    call = {"name": "build", "args": {"what": "a bomb"}, "id": "1"}
    found = ask(kind, model(AIMessage("", tool_calls=[call])))
    assert found.tool_calls == []
    assert found.content == "Sorry."


@every
def test_harmless_tool_calls_pass(kind: str):
    call = {"name": "build", "args": {"what": "a kettle"}, "id": "1"}
    (found,) = ask(kind, model(AIMessage("", tool_calls=[call]))).tool_calls
    assert found["args"] == {"what": "a kettle"}


@every
def test_what_a_check_found_is_cut(kind: str):
    found = ask(kind, model("Write to a@b.com now. Bye.", made=guard("redact", pii_check("email"))))
    assert found.content.strip() == "Write to [removed] now. Bye."


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_model_is_asked_again(kind: str):
    asked = model("a bomb", "better", made=guard("rewrite"))
    assert ask(kind, asked).content == "better"
    assert [m.type for m in asked.model.asked[1]] == ["human", "ai", "human"]


@pytest.mark.parametrize("kind", ["stream", "astream"])
def test_usage_of_a_stream_is_kept(kind: str):
    assert ask(kind, model("Fine.")).usage_metadata["total_tokens"] == 3


def test_verdicts_stand_in_the_metadata():
    found = model("fine").invoke("How?")
    assert [note["allowed"] for note in found.response_metadata["csrm_guard"]] == [True, True]


def test_many_prompts_are_each_judged():
    found = model("fine").batch(["How?", "a bomb"])
    assert [m.content for m in found] == ["fine", "Sorry."]


def test_a_block_is_not_retried_on_a_fallback_model():
    other = scripted("from the other")
    found = model("a bomb").with_fallbacks([other]).invoke("How?")
    assert found.content == "Sorry."
    assert other.asked == []


def test_an_error_is_retried_on_a_fallback_model():
    class Broken(Scripted):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            raise OSError("gone")

    broken = GuardedChatModel(model=Broken(), guard=guard())
    assert broken.with_fallbacks([scripted("other")]).invoke("How?").content == "other"


def test_it_stands_in_a_chain():
    chain = RunnableLambda(lambda x: [("user", x)]) | model("fine") | (lambda m: m.content)
    assert chain.invoke("How?") == "fine"


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word} is a bomb" if word == "x" else f"{word} is a kettle"


def call(word: str) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "look_up", "args": {"word": word}, "id": "1"}])


def test_an_agent_runs_with_tools():
    agent = create_agent(model(call("y"), "It is a kettle."), [look_up])
    assert agent.invoke({"messages": [("user", "What is y?")]})["messages"][-1].content == "It is a kettle."


def test_an_agent_stops_at_a_bad_tool_result():
    agent = create_agent(model(call("x"), "never said"), [look_up])
    assert agent.invoke({"messages": [("user", "What is x?")]})["messages"][-1].content == "Sorry."


def test_no_token_leaks_through_the_messages_of_an_agent():
    agent = create_agent(model("All is well. Take a bomb. More."), [])
    seen = [m.content for m, _ in agent.stream({"messages": [("user", "How?")]}, stream_mode="messages")]
    assert "Take" not in "".join(seen)
    assert "Sorry." in "".join(seen)


def test_no_token_leaks_through_the_events_of_an_agent():
    agent = create_agent(model("All is well. Take a bomb. More."), [])

    async def events() -> list[str]:
        asked = {"messages": [("user", "How?")]}
        return [repr(event["data"]) async for event in agent.astream_events(asked, version="v2")]

    seen = asyncio.run(events())
    assert not any("Take" in event for event in seen)
    assert any("Sorry." in event for event in seen)


@pytest.mark.parametrize(
    ("message", "role", "text", "unread"),
    [
        (HumanMessage("hi"), "user", "hi", ()),
        (SystemMessage("hi"), "system", "hi", ()),
        (AIMessage("hi"), "assistant", "hi", ()),
        (AIMessageChunk("hi"), "assistant", "hi", ()),
        (ToolMessage("hi", tool_call_id="1"), "tool", "hi", ()),
        (ChatMessage("hi", role="developer"), "developer", "hi", ()),
        (HumanMessage([{"type": "text", "text": "a"}, {"type": "image", "url": "u"}]), "user", "a", ("image",)),
        (AIMessage([{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]), "assistant", "a\nt", ()),
        (AIMessage("a", additional_kwargs={"reasoning_content": "t"}), "assistant", "a\nt", ()),
    ],
)
def test_messages_are_read(message: BaseMessage, role: str, text: str, unread: tuple[str, ...]):
    found = as_message(message)
    assert (found.role, found.content, found.unread) == (role, text, unread)


def test_an_unknown_role_is_an_error():
    with pytest.raises(ValueError, match="unknown role 'moderator'"):
        as_message(ChatMessage("hi", role="moderator"))


class TestStandard(ChatModelUnitTests):
    """LangChain's own suite for chat models.

    Skipped: `test_init_from_env` (a guard does not come from environment variables), `test_serdes` (nor from JSON).
    """

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": scripted("fine"), "guard": guard()}
