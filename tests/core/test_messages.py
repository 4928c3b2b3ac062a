import pytest

from csrm_guard import Message, MessageError, ToolCall
from csrm_guard.messages import parse_messages, stages_of

CALL = {"id": "1", "type": "function", "function": {"name": "refund", "arguments": '{"amount": 900}'}}


def test_a_string_is_a_user_message():
    assert parse_messages("hello") == (Message("user", "hello"),)


@pytest.mark.parametrize(
    ("stage", "role"),
    [("prompt", "user"), ("response", "assistant"), ("tool_call", "assistant"), ("tool_result", "tool")],
)
def test_the_stage_gives_a_bare_string_its_speaker(stage, role):
    assert parse_messages("hello", stage) == (Message(role, "hello"),)


def test_the_stage_changes_no_stated_role():
    assert parse_messages({"role": "user", "content": "hello"}, "response") == (Message("user", "hello"),)


def test_strings_messages_and_dicts_mix():
    found = parse_messages(["a", Message("assistant", "b"), {"role": "user", "content": "c"}])
    assert [m.content for m in found] == ["a", "b", "c"]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_every_role_is_read(role):
    assert parse_messages({"role": role, "content": "x"})[0].role == role


@pytest.mark.parametrize(
    ("name", "role"), [("human", "user"), ("ai", "assistant"), ("model", "assistant"), ("function", "tool")]
)
def test_vendors_names_of_roles_are_read(name, role):
    assert parse_messages({"role": name, "content": "x"})[0].role == role


@pytest.mark.parametrize(
    "role", ["wizard", "", "User", None, 3, ["user"], {}], ids=["name", "empty", "case", "none", "int", "list", "dict"]
)
def test_an_unknown_role_is_refused_with_its_place_and_the_known_ones(role):
    with pytest.raises(MessageError, match=r"messages\[1\]: unknown role .*; use one of assistant, .*user"):
        parse_messages(["hello", {"role": role, "content": "x"}])


@pytest.mark.parametrize("empty", [[], ()], ids=["list", "tuple"])
def test_no_messages_are_refused(empty):
    with pytest.raises(MessageError, match="needs at least the one that is judged"):
        parse_messages(empty)


@pytest.mark.parametrize(
    "last",
    [
        "",
        " \n\t",
        Message("user", ""),
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": []},
    ],
    ids=["text", "blank", "message", "no content", "null content", "no parts"],
)
def test_an_empty_judged_message_is_refused(last):
    with pytest.raises(MessageError, match=r"messages\[1\]: the judged message is empty; pass the text"):
        parse_messages(["hello", last])


def test_an_empty_earlier_message_is_kept():
    assert len(parse_messages(["", "hello"])) == 2


@pytest.mark.parametrize("wrong", [b"hello", 7, None, {1, 2}], ids=["bytes", "int", "none", "set"])
def test_what_is_no_conversation_is_refused_by_type(wrong):
    with pytest.raises(MessageError, match=f"not {type(wrong).__name__}"):
        parse_messages(wrong)


@pytest.mark.parametrize("wrong", [b"hello", 7, None], ids=["bytes", "int", "none"])
def test_what_is_no_message_is_refused_with_its_place(wrong):
    with pytest.raises(MessageError, match=rf"messages\[1\]: expected .*not {type(wrong).__name__}"):
        parse_messages(["hello", wrong])


@pytest.mark.parametrize("content", [b"hello", 7, {"text": "hello"}], ids=["bytes", "int", "dict"])
def test_content_of_another_type_is_refused_with_its_place(content):
    with pytest.raises(MessageError, match=rf"messages\[0\]\.content: .*not {type(content).__name__}"):
        parse_messages({"role": "user", "content": content})


def test_a_part_of_another_type_is_refused_with_its_place():
    with pytest.raises(MessageError, match=r"messages\[0\]\.content\[1\]: expected a dict, not int"):
        parse_messages({"role": "user", "content": ["a", 7]})


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}]
    assert parse_messages({"role": "user", "content": parts})[0].content == "a\nb\nc"


def test_parts_that_are_not_text_are_reported_as_unread():
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}, {}]
    assert parse_messages({"role": "user", "content": parts}) == (
        Message("user", "look", unread=("image_url", "unknown")),
    )


def test_an_image_alone_can_be_judged():
    parts = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert parse_messages({"role": "user", "content": parts})[0].unread == ("image_url",)


def test_tool_calls_are_kept_verbatim():
    found = parse_messages({"role": "assistant", "content": None, "tool_calls": [CALL, CALL]})
    assert found[0].tool_calls == (ToolCall("refund", '{"amount": 900}'),) * 2


def test_flat_tool_calls_with_parsed_arguments_are_read():
    call = {"name": "refund", "arguments": {"to": "Zoë"}}
    assert parse_messages({"role": "assistant", "tool_calls": [call]})[0].tool_calls[0].arguments == '{"to": "Zoë"}'


def test_a_legacy_function_call_is_a_tool_call():
    found = parse_messages({"role": "assistant", "content": None, "function_call": CALL["function"]})
    assert found[0].tool_calls == (ToolCall("refund", '{"amount": 900}'),)


@pytest.mark.parametrize(
    "calls",
    [5, {"name": "refund"}, ["refund"], [{}], [{"function": {"name": 3}}]],
    ids=["int", "dict", "text", "empty", "name"],
)
def test_wrong_tool_calls_are_refused_with_their_place(calls):
    with pytest.raises(MessageError, match=r"messages\[0\]\.tool_calls.*: expected"):
        parse_messages({"role": "assistant", "tool_calls": calls})


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "I can't."), ("Sorry.", "Sorry.\nI can't.")], ids=["alone", "with text"]
)
def test_the_refusal_field_is_read(content, expected):
    found = parse_messages({"role": "assistant", "content": content, "refusal": "I can't."})
    assert found[0].content == expected


def test_a_refusal_part_is_read():
    found = parse_messages({"role": "assistant", "content": [{"type": "refusal", "refusal": "I can't."}]})
    assert found[0] == Message("assistant", "I can't.")


@pytest.mark.parametrize(
    ("message", "stages"),
    [
        (Message("user", "x"), ("prompt",)),
        (Message("system", "x"), ("prompt",)),
        (Message("tool", "x"), ("tool_result",)),
        (Message("assistant", "x"), ("response",)),
        (Message("assistant", " ", (ToolCall("f", ""),)), ("tool_call",)),
        (Message("assistant", "x", (ToolCall("f", ""),)), ("response", "tool_call")),
    ],
    ids=["user", "system", "tool", "text", "call", "text and call"],
)
def test_the_stages_are_told_from_the_message(message, stages):
    assert stages_of(message) == stages


def test_a_stage_asked_for_is_the_only_one():
    assert stages_of(Message("user", "x"), "tool_result") == ("tool_result",)


def test_a_message_of_a_megabyte_is_parsed_whole():
    assert len(parse_messages("a" * 1_000_000)[0].content) == 1_000_000
