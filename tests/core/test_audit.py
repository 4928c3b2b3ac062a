import hashlib
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from csrm_guard import Guard, Message, Policy, ToolCall
from csrm_guard.audit import AuditLog
from csrm_guard.checks import pii_check
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel

STAGES = ["prompt", "response", "tool_call", "tool_result"]


def policy(action: str = "block") -> Policy:
    return Policy.from_dict({"name": "p", "rules": [{"id": "a", "text": "No.", "action": action, "stages": STAGES}]})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judged(
    path: Path, *messages: Any, made: Policy | None = None, model: Any = None, checks: Any = None, **options: Any
):
    """Return the rows of a log after a guard has judged."""
    with AuditLog(path, **options) as log:
        guard = Guard(made or policy(), model or KeywordRewardModel("bomb"), observers=[log], checks=checks)
        for message in messages:
            guard.check(message)
    return rows(path)


def test_a_verdict_is_a_line(tmp_path: Path):
    (row,) = judged(tmp_path / "a.jsonl", "a bomb")
    assert (row["allowed"], row["action"], row["policy"], row["stages"]) == (False, "block", "p", ["prompt"])
    assert row["rules"] == [
        {"id": "a", "q": 0.99, "threshold": 0.5, "violated": True, "action": "block", "spans": [[0, 6]]}
    ]
    assert (row["role"], row["characters"], row["turns"]) == ("user", 6, 1)


def test_no_text_is_written_unless_it_is_asked_for(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    message = Message("assistant", "a secret bomb", (ToolCall("send", '{"to": "secret"}'),))
    (row,) = judged(path, [message])
    assert "secret" not in path.read_text()
    assert row["hash"] == hashlib.sha256(b"a secret bomb").hexdigest()
    assert row["tool_calls"][0]["hash"] == hashlib.sha256(b'{"to": "secret"}').hexdigest()


def test_a_key_makes_hashes_that_cannot_be_guessed(tmp_path: Path):
    (row,) = judged(tmp_path / "a.jsonl", "yes", key=b"key")
    (other,) = judged(tmp_path / "b.jsonl", "yes", key=b"other")
    assert hashlib.sha256(b"yes").hexdigest() != row["hash"] != other["hash"]


def test_texts_are_written_where_they_are_asked_for(tmp_path: Path):
    message = Message("assistant", "Done.", (ToolCall("send", '{"to": 1}'),))
    (row,) = judged(tmp_path / "a.jsonl", [message], content="plain")
    assert (row["content"], row["arguments"]) == ("Done.", ['{"to": 1}'])


def test_a_text_is_written_without_what_is_to_be_redacted(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    message = Message("assistant", "Write to a@b.com now.", (ToolCall("send", '{"to": "c@d.com"}'),))
    (row,) = judged(path, [message], made=policy("redact"), checks={"a": pii_check("email")}, content="plain")
    assert row["content"] == "Write to [removed] now."
    assert "@" not in path.read_text()


def test_a_text_that_could_not_be_searched_for_what_to_redact_is_not_written(tmp_path: Path):
    def broken(text: str, messages: Any) -> list[Any]:
        raise ValueError(f"cannot read {text}")

    path = tmp_path / "a.jsonl"
    (row,) = judged(path, "my secret", made=policy("redact"), checks={"a": broken}, content="plain")
    assert (row["content"], row["error"], row["degraded"]) == ("[removed]", "ValueError", True)
    assert "secret" not in path.read_text()


def test_what_failed_is_named_without_its_words(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    (row,) = judged(path, "hello", model=ScriptedRewardModel([OSError("secret is gone")]))
    assert (row["degraded"], row["allowed"], row["error"]) == (True, False, "OSError")
    assert "secret" not in path.read_text()


def test_what_shadow_mode_let_pass_is_told(tmp_path: Path):
    with AuditLog(tmp_path / "a.jsonl") as log:
        Guard(policy(), KeywordRewardModel("bomb"), shadow=True, observers=[log]).check("a bomb")
    (row,) = rows(log.path)
    assert (row["allowed"], row["would"]) == (True, "block")


def test_a_log_is_added_to_and_its_owners_alone(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    judged(path, "one")
    assert len(judged(path, "two\nlines", "three")) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["\ud800 half", "\x00\x1b[31m", "line\u2028separator", "ü" * 5000])
def test_any_text_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "a.jsonl"
    judged(path, text, content="plain")
    assert path.read_bytes().count(b"\n") == 1
    json.loads(path.read_bytes())


def write(path: Path, text: str, times: int) -> None:
    with AuditLog(path, content="plain") as log:
        guard = Guard(policy(), KeywordRewardModel("bomb"), observers=[log])
        for _ in range(times):
            guard.check(text)


def test_lines_of_many_processes_and_threads_do_not_mix(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    spawn = multiprocessing.get_context("spawn")
    workers: list[Any] = [spawn.Process(target=write, args=(path, letter * 20_000, 25)) for letter in "ab"]
    workers += [threading.Thread(target=write, args=(path, letter * 20_000, 25)) for letter in "cd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = rows(path)
    assert len(found) == 100
    assert {len(set(row["content"])) for row in found} == {1}


def test_the_disk_may_be_waited_for(tmp_path: Path):
    assert len(judged(tmp_path / "a.jsonl", "hello", fsync=True)) == 1


def test_a_log_that_cannot_be_written_is_reported_and_the_verdict_stands(tmp_path: Path, caplog):
    log = AuditLog(tmp_path / "a.jsonl")
    os.close(log._file)
    log._file = os.open(tmp_path / "a.jsonl", os.O_RDONLY)
    assert not Guard(policy(), KeywordRewardModel("bomb"), observers=[log]).check("a bomb").allowed
    assert "observer" in caplog.text
    log.close()


def test_an_unknown_way_to_keep_texts_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="hash or plain"):
        AuditLog(tmp_path / "a.jsonl", content="some")
