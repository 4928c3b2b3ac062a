import threading
import time

import pytest

from csrm_guard import Guard, Message, Policy, ScoringError
from csrm_guard.errors import DeadlineExceeded
from csrm_guard.model import ScoringRequest
from csrm_guard.resilience import Resilient
from csrm_guard.testing import KeywordRewardModel

POLICY = Policy.from_dict({"name": "p", "rules": [{"id": "bombs", "text": "No bombs."}]})
ASKED = [ScoringRequest((Message("user", "hi"),), POLICY.rules)]


class Moody(KeywordRewardModel):
    """Fails while told to; counts how often it was asked."""

    broken = True
    asked = 0

    def score(self, requests):
        self.asked += 1
        if self.broken:
            raise OSError("gone")
        return super().score(requests)


class Stuck(KeywordRewardModel):
    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def score(self, requests):
        self.release.wait(10)
        return super().score(requests)


@pytest.fixture
def stuck():
    model = Stuck()
    yield model
    model.release.set()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_slow_model_costs_the_deadline_and_no_more(stuck: Stuck):
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within 0.05 s"):
        Resilient(stuck, deadline=0.05).score(ASKED)
    assert time.monotonic() - began < 2


def test_a_guard_past_its_deadline_refuses(stuck: Stuck):
    verdict = Guard(POLICY, stuck, deadline=0.05).check("hi")
    assert not verdict.allowed
    assert verdict.degraded
    assert "DeadlineExceeded" in (verdict.error or "")


def test_a_model_in_time_answers_as_without_a_deadline():
    model = KeywordRewardModel("bomb")
    assert not Guard(POLICY, model, deadline=5).check("a bomb").allowed
    assert Guard(POLICY, model, deadline=5).check("a kettle").allowed


def test_after_many_failures_the_model_is_left_alone():
    model = Moody()
    wrapped = Resilient(model, failures=3, cooldown=10, clock=Clock())
    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            wrapped.score(ASKED)
    with pytest.raises(ScoringError, match=r"failed 3 times in a row; tried again in 10\.0 s"):
        wrapped.score(ASKED)
    assert model.asked == 3


def test_after_the_cooldown_one_call_tries_again():
    model, clock = Moody(), Clock()
    wrapped = Resilient(model, failures=1, cooldown=10, clock=clock)
    with pytest.raises(OSError, match="gone"):
        wrapped.score(ASKED)
    clock.now, model.broken = 11, False
    assert len(wrapped.score(ASKED)) == 1
    assert len(wrapped.score(ASKED)) == 1


def test_a_failed_trial_opens_the_circuit_again():
    model, clock = Moody(), Clock()
    wrapped = Resilient(model, failures=1, cooldown=10, clock=clock)
    for now in (0, 11):
        clock.now = now
        with pytest.raises(OSError, match="gone"):
            wrapped.score(ASKED)
    with pytest.raises(ScoringError, match="tried again in 10"):
        wrapped.score(ASKED)


def test_a_success_forgets_earlier_failures():
    model = Moody()
    wrapped = Resilient(model, failures=2, clock=Clock())
    for broken in (True, False, True):
        model.broken = broken
        if broken:
            with pytest.raises(OSError, match="gone"):
                wrapped.score(ASKED)
        else:
            wrapped.score(ASKED)
    model.broken = False
    assert len(wrapped.score(ASKED)) == 1


@pytest.mark.parametrize("options", [{"deadline": 0}, {"failures": 0}, {"cooldown": -1}, {"workers": 0}])
def test_options_out_of_range_are_errors(options: dict[str, float]):
    with pytest.raises(ValueError, match="must be"):
        Resilient(KeywordRewardModel(), **options)  # type: ignore[arg-type]
