import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from csrm_guard import Guard, Policy
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel

POLICY = Policy.from_dict({"name": "p", "rules": [{"id": "bombs", "text": "No bombs."}]})


class Watching:
    """Records what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __call__(self, messages, verdict, policy) -> None:
        self.told.append(messages[-1].content)

    @contextmanager
    def judging(self, count: int) -> Iterator[None]:
        self.told.append(f"begin {count}")
        yield
        self.told.append("end")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_watcher_is_told_before_and_after(kind: str):
    watching = Watching()
    guard = Guard(POLICY, KeywordRewardModel("bomb"), observers=[watching])
    _ = guard.score(["a", "b"]) if kind == "sync" else asyncio.run(guard.ascore(["a", "b"]))
    assert watching.told == ["begin 2", "a", "b", "end"]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_watcher_that_fails_changes_no_verdict(place: str, caplog):
    class Failing(Watching):
        @contextmanager
        def judging(self, count: int) -> Iterator[None]:
            if place == "before":
                raise OSError("no collector")
            yield
            raise OSError("no collector")

    other = Watching()
    guard = Guard(POLICY, KeywordRewardModel("bomb"), observers=[Failing(), other])
    assert not guard.check("a bomb").allowed
    assert "no collector" in caplog.text
    assert other.told == ["begin 1", "a bomb", "end"]


def test_a_block_is_logged_without_the_text(caplog):
    caplog.set_level(logging.INFO, "csrm_guard")
    Guard(POLICY, KeywordRewardModel("bomb")).check("a secret bomb")
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "policy p: not allowed (block)" in caplog.text
    assert "bombs (q=0.99)" in caplog.text
    assert "secret" not in caplog.text


def test_what_shadow_mode_let_pass_is_logged(caplog):
    caplog.set_level(logging.INFO, "csrm_guard")
    Guard(POLICY, KeywordRewardModel("bomb"), shadow=True).check("a bomb")
    assert "allowed in shadow mode (else block)" in caplog.text


def test_a_verdict_without_a_judgement_is_a_warning(caplog):
    Guard(POLICY, ScriptedRewardModel([OSError("gone")])).check("hello")
    assert "refused without a full judgement: OSError" in [r.getMessage().partition(": ")[2] for r in caplog.records]


def test_what_passes_is_not_logged(caplog):
    caplog.set_level(logging.DEBUG, "csrm_guard")
    Guard(POLICY, KeywordRewardModel("bomb")).check("hello")
    assert caplog.records == []


def test_a_program_that_sets_no_logging_up_prints_nothing():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("csrm_guard").handlers)
