import asyncio
import copy
import gc
import json
import threading
import time

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ValidationError

from csrm_guard import Blocked, Guard, MessageError, Policy
from csrm_guard.checks import pii_check
from csrm_guard.testing import ChatServer, KeywordRewardModel, Reply
from csrm_guard_adapters.openai import UnguardedEndpoint, guard_client, verdicts_of, wasted_by

ASK = [{"role": "user", "content": "How?"}]
BAD = [{"role": "user", "content": "a bomb"}]
STAGES = ["prompt", "response", "tool_call", "tool_result"]


def policy(action: str = "block", **defaults: object) -> Policy:
    return Policy.from_dict({
        "name": "p",
        "defaults": {"fallback": "Sorry.", **defaults},
        "rules": [{"id": "bombs", "text": "No bombs.", "action": action, "stages": STAGES}],
    })  # fmt: skip


def guard(action: str = "block", **defaults: object) -> Guard:
    return Guard(policy(action, **defaults), KeywordRewardModel("bomb"))


@pytest.fixture(params=["sync", "async", "speculative", "async speculative"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def bare(server: ChatServer, cls: type = OpenAI, **options: object):
    return cls(api_key="none", base_url=server.url, max_retries=0, **options)


def create(kind: str, server: ChatServer, made: Guard, messages=ASK, *, options=None, **kwargs):
    """Call chat.completions.create, collecting a stream's chunks."""
    options = {"speculative": "speculative" in kind, **(options or {})}
    if "async" not in kind:
        with bare(server) as client:
            guarded = guard_client(client, made, **options)
            found = guarded.chat.completions.create(model="m", messages=messages, **kwargs)
            return list(found) if kwargs.get("stream") else found

    async def run():
        async with bare(server, AsyncOpenAI) as client:
            guarded = guard_client(client, made, **options)
            found = await guarded.chat.completions.create(model="m", messages=messages, **kwargs)
            return [chunk async for chunk in found] if kwargs.get("stream") else found

    return asyncio.run(run())


def text_of(chunks: list[ChatCompletionChunk], choice: int = 0, field: str = "content") -> str:
    picked = [c for chunk in chunks for c in chunk.choices if c.index == choice]
    return "".join(getattr(c.delta, field, None) or "" for c in picked)


def reasons(chunks: list[ChatCompletionChunk]) -> dict[int, str]:
    return {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}


def test_an_allowed_answer_is_the_vendors_own(kind: str):
    with ChatServer("All is well.") as server:
        found = create(kind, server, guard())
        assert type(found) is ChatCompletion
        assert found.choices[0].message.content == "All is well."
        assert found.usage.total_tokens == 12
        verdicts = verdicts_of(found)
        assert verdicts.allowed
        assert verdicts.endings == ("kept",)


def test_a_blocked_prompt_raises_and_is_never_sent(kind: str):
    with ChatServer("fine") as server, pytest.raises(Blocked) as caught:
        create(kind, server, guard(), BAD)
    assert caught.value.verdict.violated[0].id == "bombs"
    if "speculative" not in kind:
        assert server.requests == []


def test_a_block_can_be_returned_as_a_filtered_completion(kind: str):
    for messages, said in ((BAD, "fine"), (ASK, "a bomb")):
        with ChatServer(said) as server:
            found = create(kind, server, guard(), messages, options={"on_block": "return"})
            (choice,) = found.choices
            assert type(found) is ChatCompletion
            assert (choice.finish_reason, choice.message.content, choice.message.refusal) == (
                "content_filter", None, "Sorry."
            )  # fmt: skip
            assert not verdicts_of(found).allowed


def test_a_fallback_is_an_ordinary_answer(kind: str):
    for messages, said in ((BAD, "fine"), (ASK, "a bomb")):
        with ChatServer(said) as server:
            found = create(kind, server, guard("fallback"), messages)
            assert found.choices[0].message.content == "Sorry."
            assert found.choices[0].finish_reason == "stop"


def test_every_choice_is_judged(kind: str):
    with ChatServer(Reply(("one", "a bomb", "three"))) as server:
        found = create(kind, server, guard("fallback"), n=3)
        assert [c.message.content for c in found.choices] == ["one", "Sorry.", "three"]
    with ChatServer(Reply(("one", "a bomb", "three"))) as server, pytest.raises(Blocked):
        create(kind, server, guard(), n=3)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(("",), tool_calls=(("build", '{"what": "a bomb"}'),)),
        Reply(("",), refusal="No bomb for you."),
        Reply(("fine",), reasoning="They want a bomb."),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_tool_arguments_refusals_and_reasoning_are_judged(reply: Reply, stream: bool):
    with ChatServer(reply) as server:
        if not stream:
            with pytest.raises(Blocked):
                create("sync", server, guard())
            return
        chunks = create("sync", server, guard(), stream=True)
        assert "bomb" not in repr(chunks)
        assert reasons(chunks) == {0: "content_filter"}


def test_the_model_is_asked_again_and_the_rejected_answer_is_counted(kind: str):
    with ChatServer("a bomb", "better") as server:
        found = create(kind, server, guard("rewrite"))
        assert found.choices[0].message.content == "better"
        assert [m["role"] for m in server.requests[1]["messages"]] == ["user", "assistant", "user"]
        assert "- No bombs." in server.requests[1]["messages"][-1]["content"]
        assert verdicts_of(found).rewrites == 1


def test_personal_data_is_cut_out_of_what_is_sent_and_of_what_comes_back(kind: str):
    made = Guard(policy("redact"), checks={"bombs": pii_check("email")})
    parts = [{"type": "text", "text": "Mail a@b.com"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with ChatServer("I wrote to a@b.com now") as server:
        found = create(kind, server, made, [{"role": "user", "content": parts}])
        # The call that speculation gave up may arrive after the one that was made instead.
        sent = [request["messages"][0]["content"] for request in server.requests]
        assert [{"type": "text", "text": "Mail [removed]"}, parts[1]] in sent
        assert len(sent) == 1 or "speculative" in kind
        assert found.choices[0].message.content == "I wrote to [removed] now"
        assert verdicts_of(found).endings == ("redacted",)


def test_parts_that_are_not_text_are_reported():
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with ChatServer("fine") as server:
        found = create("sync", server, guard(), [{"role": "user", "content": parts}])
        assert verdicts_of(found).prompt[0].coverage.unread == ("image_url",)


def test_a_harmless_stream_arrives_as_it_was_sent(kind: str):
    text = "All is well. Nothing to see here. Goodbye"
    with ChatServer(text) as server:
        chunks = create(kind, server, guard(), stream=True, stream_options={"include_usage": True})
        plain = list(bare(server).chat.completions.create(
            model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
        ))  # fmt: skip
    assert chunks == plain
    assert chunks[-1].usage.total_tokens == 12


def test_no_violating_character_leaves_a_stream(kind: str):
    with ChatServer("All is well. Take a bomb. " + "More. " * 50) as server:
        chunks = create(kind, server, guard(), stream=True)
    assert "All is well.".startswith(text_of(chunks))
    assert "Take" not in repr(chunks)
    assert reasons(chunks) == {0: "content_filter"}
    assert text_of(chunks, field="refusal") == "Sorry."


def test_a_block_closes_the_upstream():
    with ChatServer(Reply(("A bomb. " + "More. " * 400,), delay=0.002)) as server:
        create("sync", server, guard(), stream=True)
        deadline = time.monotonic() + 5
        while not server.aborted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.aborted == 1
        assert server.streamed[0] < 100


def test_choices_of_a_stream_end_one_by_one(kind: str):
    with ChatServer(Reply(("Fine. Good.", "A bomb. More."))) as server:
        chunks = create(kind, server, guard(), stream=True, n=2)
    assert text_of(chunks, 0) == "Fine. Good."
    assert text_of(chunks, 1) == ""
    assert reasons(chunks) == {0: "stop", 1: "content_filter"}


def test_a_stream_of_a_blocked_prompt(kind: str):
    with ChatServer("fine") as server:
        with pytest.raises(Blocked):
            create(kind, server, guard(), BAD, stream=True)
        chunks = create(kind, server, guard(), BAD, stream=True, options={"on_block": "return"})
        assert reasons(chunks) == {0: "content_filter"}
        chunks = create(kind, server, guard("fallback"), BAD, stream=True)
        assert (text_of(chunks), reasons(chunks)) == ("Sorry.", {0: "stop"})


def test_the_stream_is_the_vendors_own_and_shows_its_verdicts():
    with ChatServer("Fine. Good.") as server, bare(server) as client:
        stream = guard_client(client, guard()).chat.completions.create(model="m", messages=ASK, stream=True)
        with stream:
            assert type(stream) is openai.Stream
            assert stream.response.status_code == 200
            list(stream)
        assert verdicts_of(stream).endings == ("kept",)


def test_the_helper_stream_is_gated():
    with ChatServer("Fine. A bomb. Good.") as server, bare(server) as client:
        guarded = guard_client(client, guard())
        with guarded.chat.completions.stream(model="m", messages=ASK) as stream:
            said = "".join(event.delta for event in stream if event.type == "content.delta")
        assert "Fine.".startswith(said)
        with pytest.raises(openai.ContentFilterFinishReasonError):
            stream.get_final_completion()


class Answer(BaseModel):
    text: str


def test_structured_output_is_parsed_and_judged():
    with ChatServer('{"text": "fine"}', '{"text": "a bomb"}') as server, bare(server) as client:
        guarded = guard_client(client, guard("fallback"))
        found = guarded.chat.completions.parse(model="m", messages=ASK, response_format=Answer)
        assert found.choices[0].message.parsed == Answer(text="fine")
        found = guarded.chat.completions.parse(model="m", messages=ASK, response_format=Answer)
        assert found.choices[0].message.parsed is None
        assert found.choices[0].message.content == "Sorry."


@pytest.mark.parametrize("stream", [False, True])
def test_raw_responses_are_judged(stream: bool):
    with ChatServer("Fine. Good.", "A bomb.") as server, bare(server) as client:
        raw = guard_client(client, guard()).chat.completions.with_raw_response
        found = raw.create(model="m", messages=ASK, stream=stream)
        assert found.headers["content-type"]
        said = text_of(list(found.parse())) if stream else found.parse().choices[0].message.content
        assert said == "Fine. Good."
        if stream:
            assert text_of(list(raw.create(model="m", messages=ASK, stream=True).parse())) == ""
        else:
            with pytest.raises(Blocked):
                raw.create(model="m", messages=ASK)


def test_a_raw_response_that_would_have_to_be_changed_is_blocked():
    with ChatServer("A bomb.") as server, bare(server) as client, pytest.raises(Blocked):
        guard_client(client, guard("redact")).chat.completions.with_raw_response.create(model="m", messages=ASK)


def test_streaming_responses_are_judged():
    with ChatServer("Fine.", "A bomb.") as server, bare(server) as client:
        wrapped = guard_client(client, guard()).chat.completions.with_streaming_response
        with wrapped.create(model="m", messages=ASK) as found:
            assert found.parse().choices[0].message.content == "Fine."
        with pytest.raises(Blocked), wrapped.create(model="m", messages=ASK):
            pass


def test_asynchronous_raw_responses_are_judged():
    async def run(server: ChatServer) -> str:
        async with bare(server, AsyncOpenAI) as client:
            raw = guard_client(client, guard()).chat.completions.with_raw_response
            found = await raw.create(model="m", messages=ASK)
            with pytest.raises(Blocked):
                await raw.create(model="m", messages=ASK)
            return found.parse().choices[0].message.content

    with ChatServer("Fine.", "A bomb.") as server:
        assert asyncio.run(run(server)) == "Fine."


def test_options_and_copies_stay_guarded():
    with ChatServer("A bomb.") as server, bare(server) as client:
        guarded = guard_client(client, guard())
        for other in (guarded.with_options(timeout=3), guarded.copy(max_retries=1)):
            with pytest.raises(Blocked):
                other.chat.completions.create(model="m", messages=ASK)


def test_a_guarded_client_passes_for_the_vendors():
    with ChatServer() as server, bare(server) as client:
        guarded = guard_client(client, guard())
        assert isinstance(guarded, OpenAI)
        assert guarded.api_key == "none"
        assert "chat" in dir(guarded)


def test_a_call_may_bring_another_guard_or_none():
    with ChatServer("a bomb") as server, bare(server) as client:
        guarded = guard_client(client, guard())
        call = guarded.chat.completions.create
        assert call(model="m", messages=ASK, guard=None).choices[0].message.content == "a bomb"
        assert call(model="m", messages=ASK, guard=guard("fallback")).choices[0].message.content == "Sorry."
        with pytest.raises(TypeError, match="a Guard, or None"):
            call(model="m", messages=ASK, guard=False)


@pytest.mark.parametrize("name", ["beta", "realtime", "post", "request"])
def test_an_endpoint_that_is_not_judged_is_refused(name: str):
    with (
        ChatServer() as server,
        bare(server) as client,
        pytest.raises(AttributeError, match=f"OpenAI.{name} generates"),
    ):
        getattr(guard_client(client, guard()), name)


def test_errors_of_the_vendor_are_the_vendors(kind: str):
    with ChatServer(Reply(status=500)) as server, pytest.raises(openai.InternalServerError):
        create(kind, server, guard())
    with ChatServer(Reply(status=429)) as server, pytest.raises(openai.RateLimitError):
        create(kind, server, guard(), stream=True)


def test_a_guard_that_cannot_score_refuses(kind: str):
    class Failing(KeywordRewardModel):
        def score(self, requests):
            raise OSError("gone")

    with ChatServer("fine") as server, pytest.raises(Blocked) as caught:
        create(kind, server, Guard(policy(), Failing()))
    assert caught.value.verdict.degraded


def test_messages_may_come_from_an_iterator_and_hold_the_vendors_objects():
    with ChatServer(Reply(("",), tool_calls=(("f", "{}"),)), "done") as server, bare(server) as client:
        guarded = guard_client(client, guard())
        said = guarded.chat.completions.create(model="m", messages=iter(ASK)).choices[0].message
        tool = {"role": "tool", "tool_call_id": "call_0", "content": "ok"}
        found = guarded.chat.completions.create(model="m", messages=[*ASK, said, tool])
        assert found.choices[0].message.content == "done"
        assert len(server.requests[1]["messages"]) == 3


def test_the_result_of_a_tool_is_judged(kind: str):
    called = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}
    talk = [*ASK, called, {"role": "tool", "tool_call_id": "c", "content": "a bomb"}]
    with ChatServer("fine") as server, pytest.raises(Blocked) as caught:
        create(kind, server, guard(), talk)
    assert caught.value.verdict.stages == ("tool_result",)


def test_a_blocked_prompt_does_not_wait_for_a_slow_model():
    with ChatServer(Reply(("fine",), delay=3)) as server, bare(server) as client:
        guarded = guard_client(client, guard(), speculative=True)
        began = time.monotonic()
        with pytest.raises(Blocked):
            guarded.chat.completions.create(model="m", messages=BAD)
        assert time.monotonic() - began < 2


def test_the_reply_of_a_given_up_call_is_counted():
    with ChatServer(Reply(("fine",), delay=0.2)) as server, bare(server) as client:
        guarded = guard_client(client, guard(), speculative=True)
        with pytest.raises(Blocked):
            guarded.chat.completions.create(model="m", messages=BAD)
        deadline = time.monotonic() + 5
        while not wasted_by(guarded).replies and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (wasted_by(guarded).replies, wasted_by(guarded).tokens) == (1, 12)


def test_verdicts_are_dropped_with_their_object():
    from csrm_guard_adapters import verdicts

    with ChatServer("fine") as server:
        found = create("sync", server, guard())
        gc.collect()
        before = len(verdicts._KEPT)
        del found
        gc.collect()
        assert len(verdicts._KEPT) == before - 1


def test_an_object_of_no_guarded_client_has_no_verdicts():
    with pytest.raises(LookupError, match="did not return it"):
        verdicts_of(Answer(text="x"))


def test_one_client_serves_many_threads():
    with ChatServer("All is well.") as server, bare(server) as client:
        guarded = guard_client(client, guard())
        said: list[str] = []

        def run() -> None:
            for _ in range(5):
                said.append(guarded.chat.completions.create(model="m", messages=ASK).choices[0].message.content)

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == ["All is well."] * 40


def test_a_connection_that_breaks_off_releases_nothing_unjudged():
    with ChatServer(Reply(("Fine now. A bo" + "mb",), broken_after=4)) as server:
        assert "bo" not in text_of(create("sync", server, guard(), stream=True))


def test_messages_cannot_be_smuggled_past_the_guard_in_the_body():
    with ChatServer("fine") as server, bare(server) as client, pytest.raises(TypeError, match="messages would be sent"):
        guard_client(client, guard()).chat.completions.create(model="m", messages=ASK, extra_body={"messages": BAD})


def test_an_answer_with_reasoning_is_asked_for_again():
    with ChatServer(Reply(("a bomb",), reasoning="Hm."), "better") as server:
        assert create("sync", server, guard("rewrite")).choices[0].message.content == "better"


def test_a_stopped_call_is_parsed_as_others_are():
    with ChatServer("fine") as server, bare(server) as client:
        call = guard_client(client, guard("fallback")).chat.completions.parse
        found = call(model="m", messages=BAD, response_format=Answer)
        assert (found.choices[0].message.content, found.choices[0].message.parsed) == ("Sorry.", None)


@pytest.mark.parametrize("name", ["iter_bytes", "iter_lines", "iter_text", "read", "text", "json"])
def test_the_bytes_of_a_guarded_stream_are_not_handed_out(name: str):
    with ChatServer("A bomb.") as server, bare(server) as client:
        wrapped = guard_client(client, guard()).chat.completions.with_streaming_response
        with (
            wrapped.create(model="m", messages=ASK, stream=True) as found,
            pytest.raises(UnguardedEndpoint, match="the bytes of a guarded stream"),
        ):
            list(getattr(found, name)())


@pytest.mark.parametrize("body", ['{"output": [{"text": "a bomb"}]}', '"a bomb"', "null", '{"choices": null}'])
def test_what_is_no_answer_of_the_endpoint_is_an_error(body: str):
    with ChatServer(Reply(body=body)) as server, pytest.raises(MessageError, match=r"no list of choices|null"):
        create("sync", server, guard())


def test_a_copy_of_a_guarded_client_is_guarded():
    with ChatServer("A bomb.") as server, bare(server) as client, pytest.raises(Blocked):
        copy.copy(guard_client(client, guard())).chat.completions.create(model="m", messages=ASK)


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
@pytest.mark.parametrize("text", ["take a bomb", '{"text": ["a bomb"]}', '{"bomb": 1}', '{"text": "a bomb'])
def test_an_answer_that_cannot_be_parsed_is_not_told_by_its_error(endpoint: str, text: str):
    with ChatServer(text) as server, bare(server) as client, pytest.raises(Blocked) as caught:
        parsing(guard_client(client, guard()), endpoint)
    assert caught.value.__context__ is None
    with ChatServer(text) as server, bare(server) as client:
        found = parsing(guard_client(client, guard("fallback")), endpoint)
        assert "Sorry." in repr(found)
        assert verdicts_of(found).endings == ("fallback",)


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_the_error_on_a_harmless_answer_that_cannot_be_parsed_is_the_vendors(endpoint: str):
    with ChatServer("no JSON") as server, bare(server) as client, pytest.raises(ValidationError, match="no JSON"):
        parsing(guard_client(client, guard()), endpoint)


def test_an_answer_that_was_cut_short_is_judged_before_its_error_is_raised():
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": '{"text": "a bomb'}}
    body = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
    for said, error in ((body, Blocked), (body.replace("bomb", "tea"), openai.LengthFinishReasonError)):
        with ChatServer(Reply(body=said)) as server, bare(server) as client, pytest.raises(error):
            parsing(guard_client(client, guard()), "chat")


def test_an_asynchronous_answer_that_cannot_be_parsed_is_judged():
    async def run(server: ChatServer) -> None:
        async with bare(server, AsyncOpenAI) as client:
            call = guard_client(client, guard()).chat.completions.parse
            await call(model="m", messages=ASK, response_format=Answer)

    with ChatServer("take a bomb") as server, pytest.raises(Blocked):
        asyncio.run(run(server))


def parsing(client: OpenAI, endpoint: str):
    if endpoint == "chat":
        return client.chat.completions.parse(model="m", messages=ASK, response_format=Answer)
    return client.responses.parse(model="m", input="How?", text_format=Answer)
