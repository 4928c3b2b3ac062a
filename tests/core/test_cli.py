import json
import re

import pytest
from typer.testing import CliRunner

import csrm_guard
from csrm_guard import Policy
from csrm_guard.__main__ import app
from csrm_guard.artifact import DEFAULT_ARTIFACT, read_manifest
from csrm_guard.policy import BUILTINS

MODEL = ("--model", str(DEFAULT_ARTIFACT))
MODEL_ID = read_manifest(DEFAULT_ARTIFACT).id
HELLO = json.dumps([{"role": "user", "content": "Hello"}])


def run(*arguments, stdin=None):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


@pytest.fixture
def write(tmp_path):
    def to_file(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def lenient(write):
    """A policy that lets everything pass, whatever the model says."""
    return write("lenient.json", {"rules": [{"id": "watch", "text": "Never shout.", "action": "observe"}]})


@pytest.fixture
def strict(write):
    """A policy that lets nothing pass, whatever the model says."""
    return write("strict.json", {"rules": [{"id": "never", "text": "Never speak.", "threshold": 1e-12}]})


def test_an_allowed_message_exits_with_0(lenient):
    done = run("check", "--policy", lenient, *MODEL, stdin=HELLO)
    assert done.exit_code == 0, done.output
    assert "ALLOWED" in done.stdout


def test_a_blocked_message_exits_with_1_and_shows_the_rule(strict):
    done = run("check", "--policy", strict, *MODEL, stdin=HELLO)
    assert done.exit_code == 1, done.output
    assert "NOT ALLOWED: block" in done.stdout
    assert "never" in done.stdout


@pytest.mark.parametrize(("name", "code"), [("lenient", 0), ("strict", 1)])
def test_the_verdict_is_printed_as_json(request, name, code):
    done = run("check", "--json", "--policy", request.getfixturevalue(name), *MODEL, stdin=HELLO)
    verdict = json.loads(done.stdout)
    assert (done.exit_code, verdict["allowed"]) == (code, code == 0)
    assert (verdict["model"], len(verdict["rules"])) == (MODEL_ID, 1)


def test_messages_are_read_from_a_file(lenient, write):
    done = run("check", "--json", "--policy", lenient, *MODEL, write("talk.json", HELLO))
    assert (done.exit_code, json.loads(done.stdout)["stages"]) == (0, ["prompt"])


def test_a_request_body_is_read_for_its_messages(lenient):
    body = json.dumps({"model": "x", "messages": [{"role": "assistant", "content": "Hi"}]})
    assert json.loads(run("check", "--json", "-p", lenient, *MODEL, stdin=body).stdout)["stages"] == ["response"]


def test_the_stage_is_taken_from_the_option(lenient):
    done = run("check", "--json", "-p", lenient, "--stage", "tool_result", *MODEL, stdin=HELLO)
    assert (json.loads(done.stdout)["stages"], json.loads(done.stdout)["rules"]) == (["tool_result"], [])


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("", "-: not JSON"),
        ("{", "-: not JSON"),
        ("[" * 100_000, "-: not JSON"),
        ("3", "-: expected a JSON list of messages, found int"),
        ("{}", "-: expected a JSON list of messages, found dict"),
        ("[]", "no messages"),
        ('[{"role": "wizard", "content": "x"}]', "messages[0]: unknown role 'wizard'"),
        ('[{"role": "user", "content": ""}]', "messages[0]: the judged message is empty"),
        (json.dumps(["a" * 1_000_000]), "messages[0]: 1000000 characters"),
    ],
    ids=["nothing", "cut", "nested", "number", "object", "no messages", "role", "empty", "megabyte"],
)
def test_messages_that_cannot_be_judged_exit_with_2(lenient, stdin, message):
    done = run("check", "--policy", lenient, *MODEL, stdin=stdin)
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_input_that_is_not_utf8_exits_with_2(lenient):
    done = run("check", "--policy", lenient, *MODEL, stdin=b'["caf\xe9"]')
    assert done.exit_code == 2, done.output
    assert "-: not UTF-8" in done.stderr


def test_a_missing_file_of_messages_exits_with_2(lenient):
    done = run("check", "--policy", lenient, *MODEL, "none.json")
    assert (done.exit_code, "none.json: cannot be read: No such file" in done.stderr) == (2, True)


def test_a_missing_policy_exits_with_2():
    done = run("check", "--policy", "none.yaml", *MODEL, stdin=HELLO)
    assert (done.exit_code, "none.yaml: cannot be read" in done.stderr) == (2, True)


def test_a_misspelt_policy_exits_with_2_and_lists_the_known_ones():
    done = run("check", "--policy", "suport-desk", *MODEL, stdin=HELLO)
    assert (done.exit_code, "there are baseline-harms, bank" in done.stderr) == (2, True)


def test_a_missing_model_exits_with_2(lenient, tmp_path):
    done = run("check", "--policy", lenient, "--model", tmp_path, stdin=HELLO)
    assert (done.exit_code, "give a folder that csrm-export wrote" in done.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [("check",), ("check", "-p", "bank", "--stage", "answer"), ("scare",)])
def test_wrong_options_exit_with_2(arguments):
    assert run(*arguments).exit_code == 2


def test_a_file_is_scored_row_by_row(lenient, write, tmp_path):
    source = write("in.jsonl", '{"id": "a", "messages": "Hello"}\n{"id": "b", "messages": "Bye"}\n')
    done = run("score", source, tmp_path / "out.jsonl", "--policy", lenient, *MODEL)
    assert done.exit_code == 0, done.output
    assert "2 rows scored, 0 already there, 0 errors" in done.stderr
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["a", "b"]


def test_scoring_again_goes_on_where_it_stopped(lenient, write, tmp_path):
    source = write("in.jsonl", '{"id": "a", "messages": "Hello"}\n{"id": "b", "messages": "Bye"}\n')
    write("out.jsonl", '{"id": "a", "allowed": true}\n')
    done = run("score", source, tmp_path / "out.jsonl", "--policy", lenient, *MODEL)
    assert "1 rows scored, 1 already there" in done.stderr


def test_error_rows_exit_with_2(write, tmp_path):
    source = write("in.jsonl", '{"id": "a", "messages": "Hello"}\n')
    done = run("score", source, tmp_path / "out.jsonl", *MODEL)
    assert (done.exit_code, "1 errors" in done.stderr) == (2, True)
    assert "pass --policy" in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("none.jsonl", "out.jsonl", "none.jsonl: cannot be read whole"),
        ("in.jsonl", "notes.txt", "notes.txt: row 1 is not of"),
        ("in.jsonl", "none/out.jsonl", "out.jsonl: cannot be written"),
    ],
    ids=["source", "foreign target", "no folder"],
)
def test_files_that_cannot_be_used_exit_with_2(write, tmp_path, lenient, source, target, message):
    write("in.jsonl", '{"id": "a", "messages": "Hello"}\n')
    write("notes.txt", "Dear diary,\n")
    done = run("score", tmp_path / source, tmp_path / target, "-p", lenient, *MODEL)
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_good_policies_are_validated_with_their_hash(lenient):
    done = run("policy", "validate", lenient, "bank")
    assert done.exit_code == 0
    assert f"ok, 1 rules, hash {Policy.from_file(lenient).hash}" in done.stdout
    assert f"bank: ok, {len(Policy.builtin('bank').rules)} rules" in done.stdout


def test_one_wrong_policy_exits_with_2_after_all_were_read(lenient, write):
    wrong = write("wrong.json", {"rules": [{"id": "a", "text": "x", "colour": "[red]"}]})
    done = run("policy", "validate", wrong, lenient)
    assert (done.exit_code, "ok, 1 rules" in done.stdout) == (2, True)
    assert "wrong.json: rules.0.colour: Extra inputs" in done.stderr


@pytest.mark.parametrize("name", BUILTINS)
def test_a_policy_is_shown_with_every_rule(name):
    done = run("policy", "show", name)
    assert done.exit_code == 0
    assert Policy.builtin(name).hash in done.stdout


def test_a_wrong_policy_is_not_shown():
    assert run("policy", "show", "none.yaml").exit_code == 2


def test_the_schema_is_json_schema():
    schema = json.loads(run("policy", "schema").stdout)
    assert (schema["type"], schema["additionalProperties"]) == ("object", False)
    assert {"rules", "extends", "defaults"} <= set(schema["properties"])


def test_the_builtins_are_listed():
    done = run("policy", "builtins")
    assert done.exit_code == 0
    assert all(name in done.stdout for name in BUILTINS)


def test_the_version_is_printed():
    assert run("version").stdout.strip() == csrm_guard.__version__


def test_doctor_names_the_model():
    assert MODEL_ID in run("doctor", *MODEL).stdout


def test_doctor_without_a_model_shows_versions_and_exits_with_2(tmp_path):
    done = run("doctor", "--model", tmp_path)
    assert (done.exit_code, "onnxruntime" in done.stdout) == (2, True)
    assert "give a folder that csrm-export wrote" in done.stderr


def test_bench_recommends_settings_for_this_machine():
    done = run("bench", "--rounds", "3", *MODEL)
    assert done.exit_code == 0, done.output
    assert "checks/s" in done.stdout
    assert re.search(r"OnnxRewardModel\.load\(threads=\d+\)", done.stdout)


def test_rows_are_scored_side_by_side_in_their_order(lenient, write, tmp_path):
    rows = [{"id": str(i), "messages": [{"role": "user", "content": f"Hi {i}"}]} for i in range(40)]
    source = write("in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = run("score", source, tmp_path / "out.jsonl", "--policy", lenient, "--workers", "3", *MODEL)
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == [str(i) for i in range(40)]
