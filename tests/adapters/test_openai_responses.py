import asyncio

import pytest
from openai import AsyncOpenAI, OpenAI, Stream
from openai.types.responses import Response
from pydantic import BaseModel

from csrm_guard import Blocked, Guard, MessageError, Policy
from csrm_guard.checks import pii_check
from csrm_guard.testing import ChatServer, KeywordRewardModel, Reply
from csrm_guard_adapters.openai import UnguardedEndpoint, guard_client, verdicts_of
from csrm_guard_adapters.openai_responses import ResponsesFormat

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


def bare(server: ChatServer, cls: type = OpenAI):
    return cls(api_key="none", base_url=server.url, max_retries=0)


def create(kind: str, server: ChatServer, made: Guard | None, input="How?", *, options=None, **kwargs):
    """Call responses.create, collecting a stream's events; without a guard the client is bare."""
    options = {"speculative": "speculative" in kind, **(options or {})}
    if "async" not in kind:
        with bare(server) as client:
            client = client if made is None else guard_client(client, made, **options)
            found = client.responses.create(model="m", input=input, **kwargs)
            return list(found) if kwargs.get("stream") else found

    async def run():
        async with bare(server, AsyncOpenAI) as client:
            client = client if made is None else guard_client(client, made, **options)
            found = await client.responses.create(model="m", input=input, **kwargs)
            return [event async for event in found] if kwargs.get("stream") else found

    return asyncio.run(run())


def text_of(events: list) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def test_an_allowed_answer_is_the_vendors_own(kind: str):
    with ChatServer("All is well.") as server:
        found = create(kind, server, guard())
        assert type(found) is Response
        assert found.output_text == "All is well."
        assert found.usage.total_tokens == 12
        assert verdicts_of(found).endings == ("kept",)


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "Hm."}]}


def user(content) -> dict:
    return {"role": "user", "content": content}


def result(output, kind: str = "function_call_output") -> dict:
    return {"type": kind, "call_id": "c", "output": output}


SHELL = [{"stdout": "a bomb", "stderr": "", "outcome": {"type": "timeout"}}]
APPROVAL = {"type": "mcp_approval_response", "approval_request_id": "a", "approve": True, "reason": "a bomb"}


@pytest.mark.parametrize(
    ("sent", "stage"),
    [
        pytest.param("a bomb", "prompt", id="string"),
        pytest.param([user("a bomb")], "prompt", id="message"),
        pytest.param([{"type": "message", **user([{"type": "input_text", "text": "a bomb"}])}], "prompt", id="parts"),
        pytest.param([user("a bomb"), user("continue")], "prompt", id="not the last"),
        pytest.param([CALL, result("a bomb")], "tool_result", id="result"),
        pytest.param([CALL, result([{"type": "input_text", "text": "a bomb"}])], "tool_result", id="result parts"),
        pytest.param([CALL, result("a bomb"), CALL, result("fine")], "tool_result", id="one result of several"),
        pytest.param([result("a bomb", "custom_tool_call_output")], "tool_result", id="custom result"),
        pytest.param([result(SHELL, "shell_call_output")], "tool_result", id="shell"),
        pytest.param([APPROVAL], "prompt", id="approval"),
        pytest.param([{"type": "some_new_call", "text": "a bomb"}], "tool_call", id="unknown"),
    ],
)
def test_every_new_item_of_the_input_is_judged(sent, stage: str):
    with ChatServer("fine") as server, pytest.raises(Blocked) as caught:
        create("sync", server, guard(), sent)
    assert caught.value.verdict.stages == (stage,)
    assert server.requests == []


def test_what_a_stored_prompt_is_filled_with_is_judged():
    with ChatServer("fine") as server, pytest.raises(Blocked):
        create("sync", server, guard(), prompt={"id": "p", "variables": {"who": "a bomb"}})


def test_history_and_instructions_are_context():
    history = [{"role": "user", "content": "a bomb"}, SAID, {"role": "user", "content": "Bread then."}]
    with ChatServer("fine") as server:
        found = create("sync", server, guard(), history, instructions="Never help with a bomb.")
        assert len(verdicts_of(found).prompt) == 1


def test_what_only_the_server_or_the_eye_can_see_is_reported():
    image = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Look"}, {"type": "input_image", "image_url": "data:,"}],
        }
    ]
    with ChatServer("fine") as server:
        found = create("sync", server, guard(), image, previous_response_id="resp_0", prompt={"id": "p"})
        (verdict,) = verdicts_of(found).prompt
        assert verdict.coverage.unread == ("input_image", "previous_response_id", "prompt")


@pytest.mark.parametrize("sent", [{"conversation": {"id": "c"}}, {"extra_body": {"conversation": "c"}}])
def test_a_conversation_on_the_server_is_reported_without_any_input(sent: dict):
    (message,) = ResponsesFormat().messages(sent)
    assert (message.role, message.unread) == ("user", ("conversation",))


def test_the_vendors_own_items_are_sent_back_and_read():
    with ChatServer(Reply(("",), tool_calls=(("f", "{}"),), reasoning="Hm."), "done") as server, bare(server) as client:
        guarded = guard_client(client, guard())
        said = guarded.responses.create(model="m", input="How?").output
        result = {"type": "function_call_output", "call_id": "call_0", "output": "ok"}
        found = guarded.responses.create(model="m", input=iter([{"role": "user", "content": "How?"}, *said, result]))
        assert found.output_text == "done"
        assert len(server.requests[1]["input"]) == 4
        assert len(verdicts_of(found).prompt) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(("a bomb",)),
        Reply(("fine", "a bomb")),
        Reply(("",), tool_calls=(("build", "{}"), ("build", '{"what": "a bomb"}'))),
        Reply(("",), refusal="No bomb for you."),
        Reply(("fine",), reasoning="They want a bomb."),
    ],
    ids=["text", "second part", "second call", "refusal", "reasoning"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_everything_in_an_answer_is_judged(reply: Reply, stream: bool):
    with ChatServer(reply) as server:
        if not stream:
            with pytest.raises(Blocked):
                create("sync", server, guard())
            return
        events = create("sync", server, guard(), stream=True)
        assert "bomb" not in repr(events)
        assert events[-1].type == "response.incomplete"


def test_a_block_can_be_returned_as_an_incomplete_response(kind: str):
    for sent, said in (("a bomb", "fine"), ("How?", "a bomb")):
        with ChatServer(said) as server:
            found = create(kind, server, guard(), sent, options={"on_block": "return"})
            assert type(found) is Response
            assert (found.status, found.incomplete_details.reason) == ("incomplete", "content_filter")
            assert found.output_text == ""
            assert found.output[0].content[0].refusal == "Sorry."
            assert not verdicts_of(found).allowed


def test_a_fallback_is_an_ordinary_answer(kind: str):
    for sent, said in (("a bomb", "fine"), ("How?", "a bomb")):
        with ChatServer(said) as server:
            found = create(kind, server, guard("fallback"), sent)
            assert (found.status, found.output_text) == ("completed", "Sorry.")


def test_a_fallback_takes_the_calls_with_it_and_keeps_harmless_thoughts():
    with ChatServer(Reply(("",), tool_calls=(("f", "a bomb"),), reasoning="Hm.")) as server:
        found = create("sync", server, guard("fallback"))
        assert [item.type for item in found.output] == ["reasoning", "message"]


def test_thoughts_that_may_not_be_seen_are_emptied():
    with ChatServer(Reply(("fine",), reasoning="A bomb.")) as server:
        found = create("sync", server, guard("fallback"))
        assert (found.output_text, found.output[0].summary[0].text) == ("fine", "")


def test_the_model_is_asked_again(kind: str):
    with ChatServer(Reply(("a bomb",), reasoning="Hm."), "better") as server:
        found = create(kind, server, guard("rewrite"))
        assert found.output_text == "better"
        assert [item["role"] for item in server.requests[1]["input"]] == ["user", "assistant", "user"]
        assert verdicts_of(found).rewrites == 1


@pytest.mark.parametrize(
    "sent",
    ["Mail a@b.com", [user("Mail a@b.com")], [user([{"type": "input_text", "text": "Mail a@b.com"}])],
     [result("Mail a@b.com")], [result([{**SHELL[0], "stdout": "Mail a@b.com"}], "shell_call_output")]],
    ids=["string", "message", "parts", "result", "shell"],
)  # fmt: skip
def test_personal_data_is_cut_out_of_what_is_sent_and_of_what_comes_back(sent):
    made = Guard(policy("redact"), checks={"bombs": pii_check("email")})
    with ChatServer("I wrote to a@b.com now") as server:
        found = create("sync", server, made, sent)
        assert "a@b.com" not in repr(server.requests)
        assert "Mail [removed]" in repr(server.requests)
        assert found.output_text == "I wrote to [removed] now"


def test_a_variable_of_a_stored_prompt_is_cut():
    made = Guard(policy("redact"), checks={"bombs": pii_check("email")})
    with ChatServer("fine") as server:
        create("sync", server, made, prompt={"id": "p", "variables": {"who": "a@b.com", "what": "tea"}})
        assert server.requests[0]["prompt"]["variables"] == {"who": "[removed]", "what": "tea"}


LONG = Reply(
    ("All is well. Nothing to see here. Goodbye", "And more."),
    tool_calls=(("f", '{"a": 1}'), ("g", "{}")),
    reasoning="They ask. I answer.",
    refusal="No.",
)


def test_a_harmless_stream_arrives_as_it_was_sent(kind: str):
    with ChatServer(LONG) as server:
        events = create(kind, server, guard(), stream=True)
        assert events == create("sync", server, None, stream=True)


def well_formed(events: list) -> None:
    """Assert that events are numbered in order and that what ends says what was said."""
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    said: dict[tuple, str] = {}
    items = {}
    for event in events:
        place = (getattr(event, "output_index", None), getattr(event, "content_index", None))
        if event.type in ("response.output_text.delta", "response.refusal.delta"):
            said[place] = said.get(place, "") + event.delta
        elif event.type == "response.output_text.done":
            assert event.text == said.get(place, "")
        elif event.type == "response.content_part.done":
            assert getattr(event.part, "text", getattr(event.part, "refusal", None)) == said.get(place, "")
        elif event.type == "response.output_item.done":
            items[event.output_index] = event.item
    added = [event.output_index for event in events if event.type == "response.output_item.added"]
    assert sorted(items) == sorted(added)
    final = events[-1].response.output
    assert [item.to_dict() for item in final] == [items[i].to_dict() for i in sorted(items)]


@pytest.mark.parametrize("action", ["block", "fallback"])
def test_no_violating_character_leaves_a_stream_and_its_end_is_well_formed(kind: str, action: str):
    with ChatServer(Reply(("All is well. Take a bomb. " + "More. " * 50,), reasoning="They ask.")) as server:
        events = create(kind, server, guard(action), stream=True)
    assert "Take" not in repr(events)
    assert "All is well. ".startswith(text_of(events).removesuffix("Sorry."))
    well_formed(events)
    if action == "block":
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.incomplete_details.reason == "content_filter"
    else:
        assert (events[-1].type, events[-1].response.output[-1].content[0].text) == ("response.completed", "Sorry.")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(("fine",), reasoning="They ask. A bomb. Well."),
        Reply(("Fine.", "A bomb. Well.")),
        Reply(("Fine.",), refusal="No. A bomb."),
        Reply(("Fine.",), tool_calls=(("f", "{}"), ("g", "a bomb"))),
    ],
    ids=["reasoning", "part", "refusal", "call"],
)
@pytest.mark.parametrize("mode", ["gated", "sampled", "end"])
def test_a_stream_that_is_blocked_anywhere_is_well_formed(reply: Reply, mode: str):
    with ChatServer(reply) as server:
        events = create("sync", server, guard(), stream=True, options={"stream": mode})
    well_formed(events)
    assert events[-1].type == "response.incomplete"
    assert mode != "gated" or "bomb" not in repr(events)


def test_the_end_of_a_part_is_judged_before_it_leaves_even_if_deltas_left_at_once():
    with ChatServer("Take a bomb") as server:
        events = create("sync", server, guard(), stream=True, options={"stream": "end"})
    assert text_of(events) == "Take a bomb"
    assert [e.type for e in events if e.type == "response.completed"] == []


def test_a_hosted_tools_call_leaves_when_it_is_complete():
    with ChatServer(Reply(("Fine. " * 20,), tool_calls=(("f", "{}"),))) as server:
        events = create("sync", server, guard(), stream=True)
    assert [event.type for event in events].index("response.function_call_arguments.done") < len(events) - 2


def test_personal_data_is_cut_out_of_every_event_of_a_stream():
    made = Guard(policy("redact"), checks={"bombs": pii_check("email")})
    with ChatServer(Reply(("Hello. I wrote to a@b.com now. Bye.",), reasoning="Is it c@d.org? Yes.")) as server:
        events = create("sync", server, made, stream=True)
    assert "a@b.com" not in repr(events)
    assert "c@d.org" not in repr(events)
    well_formed(events)
    assert events[-1].response.output_text == "Hello. I wrote to [removed] now. Bye."


def test_a_stream_of_a_blocked_prompt(kind: str):
    with ChatServer("fine") as server:
        with pytest.raises(Blocked):
            create(kind, server, guard(), "a bomb", stream=True)
        events = create(kind, server, guard(), "a bomb", stream=True, options={"on_block": "return"})
        well_formed(events)
        assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
        events = create(kind, server, guard("fallback"), "a bomb", stream=True)
        assert (text_of(events), events[-1].response.status) == ("Sorry.", "completed")


def test_the_stream_is_the_vendors_own_and_shows_its_verdicts():
    with ChatServer("Fine. Good.") as server, bare(server) as client:
        with guard_client(client, guard()).responses.create(model="m", input="How?", stream=True) as stream:
            assert type(stream) is Stream
            assert stream.response.status_code == 200
            list(stream)
        assert verdicts_of(stream).endings == ("kept",)


class Answer(BaseModel):
    text: str


def test_the_helper_stream_is_gated():
    with ChatServer('{"text": "fine"}', "Fine. A bomb.") as server, bare(server) as client:
        guarded = guard_client(client, guard("fallback"))
        with guarded.responses.stream(model="m", input="How?", text_format=Answer) as stream:
            assert stream.get_final_response().output_parsed == Answer(text="fine")
        with guarded.responses.stream(model="m", input="How?") as stream:
            said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            assert said in ("Fine. Sorry.", "Sorry.")
            assert stream.get_final_response().output_text == said


def test_structured_output_is_parsed_and_judged():
    with ChatServer('{"text": "fine"}', '{"text": "a bomb"}') as server, bare(server) as client:
        parse = guard_client(client, guard("fallback")).responses.parse
        assert parse(model="m", input="How?", text_format=Answer).output_parsed == Answer(text="fine")
        for sent in ("How?", "a bomb"):
            found = parse(model="m", input=sent, text_format=Answer)
            assert (found.output_parsed, found.output_text) == (None, "Sorry.")


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_in_the_background_is_judged_when_it_is_fetched(stream: bool):
    with ChatServer("a bomb") as server, bare(server) as client:
        guarded = guard_client(client, guard())
        queued = guarded.responses.create(model="m", input="How?", background=True)
        assert queued.status == "queued"
        if stream:
            events = list(guarded.responses.retrieve(queued.id, stream=True))
            assert "bomb" not in repr(events)
            assert events[-1].type == "response.incomplete"
        else:
            with pytest.raises(Blocked):
                guarded.responses.retrieve(queued.id)
            with pytest.raises(Blocked):
                guarded.responses.cancel(queued.id)


def test_a_stored_answer_is_not_asked_for_again():
    with ChatServer("a bomb") as server, bare(server) as client:
        guarded = guard_client(client, guard("rewrite"))
        queued = guarded.responses.create(model="m", input="How?", background=True)
        found = guarded.responses.retrieve(queued.id)
        assert (found.output_text, verdicts_of(found).rewrites) == ("Sorry.", 0)


@pytest.mark.parametrize("stream", [False, True])
def test_raw_responses_are_judged(stream: bool):
    with ChatServer("Fine. Good.", "A bomb.") as server, bare(server) as client:
        raw = guard_client(client, guard()).responses.with_raw_response
        found = raw.create(model="m", input="How?", stream=stream)
        assert found.headers["content-type"]
        said = text_of(list(found.parse())) if stream else found.parse().output_text
        assert said == "Fine. Good."
        if stream:
            assert text_of(list(raw.create(model="m", input="How?", stream=True).parse())) == ""
        else:
            with pytest.raises(Blocked):
                raw.create(model="m", input="How?")


def test_streaming_and_asynchronous_raw_responses_are_judged():
    async def run(server: ChatServer) -> str:
        async with bare(server, AsyncOpenAI) as client:
            guarded = guard_client(client, guard()).with_raw_response.responses
            found = await guarded.create(model="m", input="How?")
            with pytest.raises(Blocked):
                await guarded.create(model="m", input="How?")
            return found.parse().output_text

    with ChatServer("Fine.", "A bomb.") as server:
        assert asyncio.run(run(server)) == "Fine."
    with ChatServer("Fine.", "A bomb.") as server, bare(server) as client:
        wrapped = guard_client(client, guard()).responses.with_streaming_response
        with wrapped.create(model="m", input="How?") as found:
            assert found.parse().output_text == "Fine."
        with pytest.raises(Blocked), wrapped.create(model="m", input="How?"):
            pass


def test_a_socket_is_refused_and_the_rest_passes():
    with ChatServer() as server, bare(server) as client:
        guarded = guard_client(client, guard())
        with pytest.raises(UnguardedEndpoint, match="connect generates"):
            guarded.responses.connect()
        assert guarded.responses.input_items is not None
        assert callable(guarded.responses.delete)


def test_what_is_no_response_is_an_error(kind: str):
    body = '{"choices": [{"message": {"content": "a bomb"}}]}'
    with ChatServer(Reply(body=body)) as server, pytest.raises(MessageError, match="is no response"):
        create(kind, server, guard())
