import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._models import construct_type
from openai.types.responses import ResponseStreamEvent

from csrm_guard import Guard, Message, Policy
from csrm_guard.drivers import pump
from csrm_guard.stream import Mode, StreamGate
from csrm_guard.testing import KeywordRewardModel, Reply
from csrm_guard.testing_bodies import response_events
from csrm_guard_adapters.openai_response_events import ResponseEvents

HEAD = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [], "parallel_tool_calls": True,
    "tool_choice": "auto", "tools": [],
}  # fmt: skip
CREATED = {"type": "response.created", "response": HEAD}


class Foreign:
    """An event of a type that this SDK does not know."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)

    def model_dump(self, **_: object) -> dict[str, object]:
        return dict(self.__dict__)


def typed(event: dict) -> object:
    return (
        Foreign(**event)
        if event["type"].startswith("foreign")
        else construct_type(value=event, type_=ResponseStreamEvent)
    )


def gate_of(*events: dict, action: str = "block", mode: Mode = "gated") -> list:
    """Return what leaves of a stream of events."""
    stages = ["response", "tool_call"]
    rule = {"id": "bombs", "text": "No bombs.", "action": action, "stages": stages}
    guard = Guard(Policy.from_dict({"name": "p", "rules": [rule]}), KeywordRewardModel("bomb"))
    form = ResponseEvents("m")
    gate: StreamGate = StreamGate(guard.policy, (Message("user", "How?"),), mode=mode)
    numbered = [typed({"sequence_number": n, **event}) for n, event in enumerate((CREATED, *events))]
    return [event for out in pump(gate, guard.score, map(form.gated, numbered)) for event in form.out(out)]


def item(kind: str, **fields: object) -> dict:
    return {"id": "i", "type": kind, "status": "completed", **fields}


def done(made: dict, i: int = 0) -> list[dict]:
    """Return the events of an item that comes whole, as some servers send it, and of its response."""
    begun = {**made, "status": "in_progress", **{name: [] for name in ("content", "summary") if name in made}}
    return [
        {"type": "response.output_item.added", "output_index": i, "item": begun},
        {"type": "response.output_item.done", "output_index": i, "item": made},
        {"type": "response.completed", "response": {**HEAD, "output": [made]}},
    ]


BOMB = [{"type": "output_text", "text": "A bomb.", "annotations": []}]
RESULT = {"file_id": "f", "text": "a bomb"}
ITEMS = [
    item("message", role="assistant", content=BOMB),
    item("reasoning", summary=[{"type": "summary_text", "text": "A bomb."}]),
    item("function_call", name="f", call_id="c", arguments='{"a": "bomb"}'),
    item("custom_tool_call", name="f", call_id="c", input="a bomb"),
    item("mcp_call", name="f", server_label="s", arguments="{}", output="a bomb"),
    item("mcp_approval_request", name="f", server_label="s", arguments="a bomb"),
    item("code_interpreter_call", container_id="c", code="a bomb", outputs=None),
    item("code_interpreter_call", container_id="c", code="", outputs=[{"type": "logs", "logs": "a bomb"}]),
    item("web_search_call", action={"type": "search", "query": "a bomb"}),
    item("file_search_call", queries=["q"], results=[RESULT]),
    item("computer_call", call_id="c", action={"type": "type", "text": "a bomb"}, pending_safety_checks=[]),
    item("local_shell_call", call_id="c", action={"type": "exec", "command": ["a bomb"], "env": {}}),
]


@pytest.mark.parametrize("mode", ["gated", "sampled", "end"])
@pytest.mark.parametrize("made", ITEMS, ids=lambda made: made["type"])
def test_an_item_that_comes_whole_is_judged_before_it_leaves(made: dict, mode: Mode):
    events = gate_of(*done(made), mode=mode)
    assert "bomb" not in repr(events[-1].response.output if mode != "gated" else events)
    assert events[-1].type == "response.incomplete"


@pytest.mark.parametrize("made", ITEMS, ids=lambda made: made["type"])
def test_an_item_that_is_only_in_the_finished_response_is_judged(made: dict):
    events = gate_of({"type": "response.completed", "response": {**HEAD, "output": [made]}})
    assert "bomb" not in repr(events)


def test_the_output_of_a_hosted_tool_is_judged_after_its_call_has_left():
    call = item("mcp_call", name="f", server_label="s", arguments='{"a": 1}')
    place = {"item_id": "i", "output_index": 0}
    events = gate_of(
        {"type": "response.output_item.added", "output_index": 0, "item": {**call, "arguments": ""}},
        {"type": "response.mcp_call_arguments.delta", **place, "delta": '{"a": 1}'},
        {"type": "response.mcp_call_arguments.done", **place, "arguments": '{"a": 1}'},
        {"type": "response.mcp_call.completed", **place},
        {"type": "response.output_item.done", "output_index": 0, "item": {**call, "output": "a bomb"}},
    )
    kinds = [event.type for event in events]
    assert "response.mcp_call_arguments.done" in kinds
    closed = next(event for event in events if event.type == "response.output_item.done")
    assert (closed.item.status, closed.item.arguments, closed.item.output) == ("incomplete", '{"a": 1}', None)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.audio.transcript.delta", "delta": "a bomb"},
        {"type": "response.code_interpreter_call_code.delta", "item_id": "i", "output_index": 0, "delta": "a bomb"},
        {"type": "foreign.news", "body": {"headline": "a bomb"}},
    ],
    ids=["transcript", "code", "unknown"],
)
def test_text_in_rarer_events_is_judged(event: dict):
    events = gate_of(event, {"type": "response.completed", "response": HEAD})
    assert "bomb" not in repr(events)
    assert events[-1].type == "response.incomplete"


def test_an_event_without_text_passes():
    place = {"item_id": "i", "output_index": 0}
    sent = [
        {"type": "response.in_progress", "response": HEAD},
        {"type": "response.web_search_call.searching", **place},
        {"type": "response.completed", "response": HEAD},
    ]
    assert [event.type for event in gate_of(*sent)[1:]] == [event["type"] for event in sent]


def test_an_unknown_event_that_would_have_to_be_cut_does_not_leave():
    news = {"type": "foreign.news", "body": "Fine. A bomb. Good."}
    events = gate_of(news, {"type": "response.completed", "response": HEAD}, action="redact")
    assert [event.type for event in events] == ["response.created", "response.completed"]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from(["fine. ", "a bomb. ", "tea ", "and so on "]), max_size=6), max_size=3),
    reasoning=st.sampled_from(["", "Hm. Well. ", "A bomb? No. "]),
    calls=st.lists(st.sampled_from(["{}", '{"a": "bomb"}']), max_size=2),
    piece=st.integers(1, 30),
    action=st.sampled_from(["block", "fallback", "redact"]),
)
def test_no_violating_character_leaves_whatever_the_chunks(texts, reasoning, calls, piece, action):
    said = Reply(
        tuple("".join(words) for words in texts), tuple(("f", call) for call in calls), reasoning=reasoning, piece=piece
    )
    sent = response_events({}, said)
    events = gate_of(*sent[1:], action=action)
    assert "bomb" not in repr(events)
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    if "bomb" not in repr(sent):
        assert [event.type for event in events] == [event["type"] for event in sent]
