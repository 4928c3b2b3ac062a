import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest

from csrm_guard import RuleResult, Verdict
from csrm_guard.verdict import Coverage, reward_of

BROKEN = RuleResult("no-refunds", 0.9, 0.5, True, "block", "high", (0, 9))
KEPT = RuleResult("be-kind", 0.1, 0.5, False, "redact", "low", (0, 9))
VERDICT = Verdict(False, "block", 0.1, -2.2, (BROKEN, KEPT), ("prompt",), "0123", "m", Coverage(1))


def test_the_reward_of_even_odds_is_zero():
    assert reward_of(0.5) == 0.0


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.3, 1.0])
def test_the_reward_is_finite(p):
    assert math.isfinite(reward_of(p))


def test_the_reward_rises_with_safety():
    assert reward_of(0.0) < reward_of(0.2) < reward_of(0.8) < reward_of(1.0)


def test_the_reward_is_the_log_odds():
    assert reward_of(0.9) == pytest.approx(math.log(9))


def test_violated_holds_only_the_violated_rules():
    assert VERDICT.violated == (BROKEN,)


def test_a_verdict_goes_through_json():
    found = json.loads(json.dumps(VERDICT.to_dict()))
    assert found["rules"][0] == {
        "id": "no-refunds", "q": 0.9, "threshold": 0.5, "violated": True, "action": "block", "severity": "high",
        "span": [0, 9], "spans": [], "exact": False,
    }  # fmt: skip
    assert found["coverage"]["windows"] == 1


def test_a_verdict_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        VERDICT.allowed = True


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (VERDICT, "not allowed (block), p_safe=0.10, violates no-refunds (q=0.90)"),
        (replace(VERDICT, allowed=True, action=None, rules=(KEPT,), p_safe=0.9), "allowed, p_safe=0.90"),
        (replace(VERDICT, degraded=True, error="it broke"), "blocked, not scored: it broke"),
        (replace(VERDICT, allowed=True, degraded=True, error="it broke"), "allowed, not scored: it broke"),
    ],
    ids=["blocked", "allowed", "degraded", "degraded but allowed"],
)
def test_the_summary_is_one_line_with_the_reason(verdict, line):
    assert verdict.summary() == line
