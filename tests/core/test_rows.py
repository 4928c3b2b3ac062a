import gzip
import json

import pytest

from csrm_guard import Message
from csrm_guard.errors import RowError
from csrm_guard.rows import parse_row, read_jsonl, views

TURNS = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))


def test_a_row_holds_what_its_line_says():
    policy = {"rules": [{"id": "a", "text": "x"}]}
    data = {"id": 7, "messages": "hi", "policy": policy, "stage": "response", "label": "unsafe", "violated": ["a"]}
    row = parse_row(data, "f:1")
    assert (row.id, row.messages, row.stage) == ("7", (Message("assistant", "hi"),), "response")
    assert (row.label, row.violated, row.policy.rules[0].id) == (True, ("a",), "a")


def test_a_row_needs_messages_only():
    row = parse_row({"messages": "hi"}, "f:1")
    assert (row.id, row.policy, row.stage, row.label, row.violated) == ("f:1", None, None, None, None)
    assert row.scope == "last message"


def test_keys_that_the_format_does_not_know_are_left_alone():
    assert parse_row({"messages": "hi", "source": "forum"}, "f:1").messages


@pytest.mark.parametrize(("label", "unsafe"), [("safe", False), ("unsafe", True), (None, None)])
def test_labels_are_read(label, unsafe):
    assert parse_row({"messages": "hi", "label": label}, "f:1").label is unsafe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "bad"}, "f:3: label 'bad'; use 'safe' or 'unsafe'"),
        ({"label": True}, "f:3: label True; use"),
        ({"label": ["safe"]}, "f:3: label "),
        ({"scope": "all"}, "f:3: scope 'all'; use 'last message' or 'any assistant turn'"),
        ({"stage": "answer"}, "f:3: stage 'answer'; use one of prompt, response, tool_call, tool_result"),
        ({"stage": ["prompt"]}, "f:3: stage "),
        ({"violated": 5}, "f:3: violated must be a list of rule ids"),
        ({"violated": "abc"}, "f:3: violated must be a list of rule ids"),
        ({"policy": "bank"}, "f:3: a policy is a mapping, not str"),
        ({"policy": {"rules": []}}, "f:3: policy: the policy has no rules"),
        ({"policy": {"rules": [{"id": "a", "text": "x", "colour": 1}]}}, r"f:3: policy: rules\.0\.colour"),
        ({"messages": None}, "f:3: messages must be"),
        ({"messages": []}, "f:3: no messages"),
        ({"messages": ""}, r"f:3: messages\[0\]: the judged message is empty"),
        ({"messages": [{"role": "wizard"}]}, r"f:3: messages\[0\]: unknown role 'wizard'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"f:3: messages\[0\]: unknown role"),
    ],
)
def test_a_wrong_field_is_refused_with_file_line_and_fix(fields, message):
    with pytest.raises(RowError, match=message):
        parse_row({"messages": "hi"} | fields, "f:3")


def test_a_row_without_messages_is_refused():
    with pytest.raises(RowError, match="f:1: no messages"):
        parse_row({"id": "a"}, "f:1")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_lines_are_read_with_their_numbers(tmp_path, name):
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as out:
        out.write('{"id": "ä"}\n\n  \n{"id": "b"}\n')
    assert list(read_jsonl(tmp_path / name)) == [(1, {"id": "ä"}), (4, {"id": "b"})]


def test_the_last_line_needs_no_newline(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"id": 1}\n{"id": 2}')
    assert [number for number, _ in read_jsonl(tmp_path / "f.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": 1}\n{"id": 2, "mess', r"f\.jsonl:2: not a whole line of JSON .*; is the file cut short"),
        (b'{"id": 1}\n[1, 2]\n', r"f\.jsonl:2: expected a JSON object, found list"),
        (b'{"id": 1}\n' + b"[" * 100_000, r"f\.jsonl:2: not a whole line of JSON"),
        (b'{"id": 1}\n{"id": ' + b"1" * 5000 + b"}", r"f\.jsonl:2: not a whole line of JSON"),
        (b"caf\xe9\n", r"f\.jsonl:1: not UTF-8; save the file as UTF-8"),
    ],
    ids=["truncated", "list", "nested", "number", "encoding"],
)
def test_a_line_that_is_no_object_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(RowError, match=message):
        list(read_jsonl(tmp_path / "f.jsonl"))


def test_the_rows_before_a_torn_line_are_given(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"id": 1}\n{"id": 2, "mess')
    assert next(read_jsonl(tmp_path / "f.jsonl")) == (1, {"id": 1})


@pytest.mark.parametrize("cut", [5, 30], ids=["in the head", "in the data"])
def test_a_gz_file_cut_short_is_refused(tmp_path, cut):
    whole = gzip.compress("".join(json.dumps({"id": i}) + "\n" for i in range(500)).encode())
    (tmp_path / "f.jsonl.gz").write_bytes(whole[:cut])
    with pytest.raises(RowError, match=r"f\.jsonl\.gz: cannot be read whole"):
        list(read_jsonl(tmp_path / "f.jsonl.gz"))


def test_a_gz_file_with_damaged_data_is_refused(tmp_path):
    whole = bytearray(gzip.compress("".join(json.dumps({"id": i}) + "\n" for i in range(500)).encode()))
    whole[20:60] = b"\xff" * 40
    (tmp_path / "f.jsonl.gz").write_bytes(whole)
    with pytest.raises(RowError, match=r"f\.jsonl\.gz"):
        list(read_jsonl(tmp_path / "f.jsonl.gz"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RowError, match=r"none\.jsonl: cannot be read whole: .*No such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_the_last_message_is_one_view():
    assert views(TURNS, "last message") == (TURNS,)


def test_each_assistant_turn_is_a_view_with_its_history():
    assert views(TURNS, "any assistant turn") == (TURNS[:2], TURNS)


def test_a_conversation_without_assistant_turns_is_one_view():
    assert views(TURNS[:1], "any assistant turn") == (TURNS[:1],)


def test_a_row_cannot_make_the_reader_open_files(tmp_path):
    (tmp_path / "secret.yaml").write_text("name: x\nrules: [{id: a, text: b}]\n")
    policy = {"extends": [str(tmp_path / "secret.yaml")], "rules": [{"id": "c", "text": "d"}]}
    with pytest.raises(RowError, match="built-in"):
        parse_row({"policy": policy, "messages": ["hi"]}, "here:1")


def test_a_row_may_extend_a_built_in():
    policy = {"extends": ["baseline-harms"], "rules": [{"id": "c", "text": "d"}]}
    row = parse_row({"policy": policy, "messages": ["hi"]}, "here:1")
    assert row.policy is not None
    assert len(row.policy.rules) > 1
