import asyncio
import os

import pytest

# Else litellm asks the network for its table of prices, and waits.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm")

from csrm_guard import Blocked, Guard, Policy  # noqa: E402
from csrm_guard.testing import ChatServer, KeywordRewardModel, Reply  # noqa: E402
from csrm_guard_adapters.litellm import guard_completion, verdicts_of  # noqa: E402

ASK = [{"role": "user", "content": "How?"}]
BAD = [{"role": "user", "content": "a bomb"}]
STAGES = ["prompt", "response", "tool_call", "tool_result"]

# litellm warns of its own types, loggers and loops
pytestmark = pytest.mark.filterwarnings("ignore")


def guard(action: str = "block") -> Guard:
    rule = {"id": "bombs", "text": "No bombs.", "action": action, "stages": STAGES}
    made = Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [rule]})
    return Guard(made, KeywordRewardModel("bomb"))


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def complete(kind: str, server: ChatServer, made: Guard, messages=ASK, *, options=None, **kwargs):
    """Call litellm's completion, collecting a stream's chunks."""
    sent = {"messages": messages, "api_base": server.url, "api_key": "none", "max_retries": 0, **kwargs}
    if kind == "sync":
        found = guard_completion(litellm.completion, made, **(options or {}))("openai/m", **sent)
        return list(found) if kwargs.get("stream") else found

    async def run():
        found = await guard_completion(litellm.acompletion, made, **(options or {}))("openai/m", **sent)
        return [chunk async for chunk in found] if kwargs.get("stream") else found

    return asyncio.run(run())


def text_of(chunks) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)


def test_an_allowed_answer_is_litellms_own(kind: str):
    with ChatServer("All is well.") as server:
        found = complete(kind, server, guard())
        assert type(found) is litellm.ModelResponse
        assert found.choices[0].message.content == "All is well."
        assert verdicts_of(found).allowed


def test_a_blocked_prompt_is_never_sent(kind: str):
    with ChatServer("fine") as server, pytest.raises(Blocked):
        complete(kind, server, guard(), BAD)
    assert server.requests == []


def test_a_block_can_be_returned_as_a_filtered_answer(kind: str):
    for messages, said in ((BAD, "fine"), (ASK, "a bomb")):
        with ChatServer(said) as server:
            found = complete(kind, server, guard(), messages, options={"on_block": "return"})
            assert type(found) is litellm.ModelResponse
            assert (found.choices[0].finish_reason, found.choices[0].message.content) == ("content_filter", None)


def test_every_choice_and_call_is_judged(kind: str):
    with ChatServer(Reply(("one", "a bomb"))) as server:
        found = complete(kind, server, guard("fallback"), n=2)
        assert [choice.message.content for choice in found.choices] == ["one", "Sorry."]
    with ChatServer(Reply(("",), tool_calls=(("f", "a bomb"),))) as server, pytest.raises(Blocked):
        complete(kind, server, guard())


def test_a_harmless_stream_arrives_whole(kind: str):
    with ChatServer("All is well. Goodbye") as server:
        chunks = complete(kind, server, guard(), stream=True)
        assert text_of(chunks) == "All is well. Goodbye"
        assert {type(chunk) for chunk in chunks} == {litellm.ModelResponseStream}


@pytest.mark.parametrize(("action", "end"), [("block", ("", "content_filter")), ("fallback", ("Sorry.", "stop"))])
def test_no_violating_character_leaves_a_stream(kind: str, action: str, end: tuple[str, str]):
    with ChatServer("All is well. Take a bomb. " + "More. " * 50) as server:
        chunks = complete(kind, server, guard(action), stream=True)
    assert "Take" not in repr(chunks)
    assert text_of(chunks).endswith(end[0])
    assert chunks[-1].choices[0].finish_reason == end[1]
    assert {type(chunk) for chunk in chunks} == {litellm.ModelResponseStream}


def test_a_stream_passes_for_litellms_and_shows_its_verdicts():
    with ChatServer("Fine. Good.") as server:
        call = guard_completion(litellm.completion, guard())
        stream = call(model="openai/m", messages=ASK, api_base=server.url, api_key="none", stream=True)
        assert isinstance(stream, litellm.CustomStreamWrapper)
        list(stream)
        assert verdicts_of(stream).endings == ("kept",)


def test_a_router_is_guarded_as_the_function_is():
    with ChatServer("a bomb") as server:
        deployed = {"model": "openai/m", "api_base": server.url, "api_key": "none"}
        router = litellm.Router(model_list=[{"model_name": "m", "litellm_params": deployed}])
        with pytest.raises(Blocked):
            guard_completion(router.completion, guard())("m", ASK)
        with pytest.raises(Blocked):
            asyncio.run(guard_completion(router.acompletion, guard())("m", ASK))


def test_errors_are_litellms():
    with ChatServer(Reply(status=429)) as server, pytest.raises(litellm.RateLimitError):
        complete("sync", server, guard())


def test_a_call_may_bring_another_guard_or_none():
    with ChatServer("a bomb") as server:
        found = complete("sync", server, guard("fallback"), guard=None)
        assert found.choices[0].message.content == "a bomb"


def test_arguments_that_are_given_twice_are_refused():
    with pytest.raises(TypeError, match="got model twice"):
        guard_completion(litellm.completion, guard())("m", ASK, model="m")
