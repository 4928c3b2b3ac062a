import numpy as np
import pytest

from csrm_guard import Policy, Reading, Rule
from csrm_guard.decision import decide, refuse, strongest

ACTIONS = ("observe", "redact", "rewrite", "fallback", "block")


def policy_of(*actions, **defaults):
    rules = [{"id": f"r{i}", "text": "x", "action": action} for i, action in enumerate(actions)]
    return Policy.from_dict({"rules": rules, "defaults": defaults})


def verdict_on(q, *, actions=("block", "block"), thresholds=(0.5, 0.5), spans=None):
    policy = policy_of(*actions)
    q = np.atleast_2d(np.array(q, float))
    reading = Reading(q, spans or ((0, 9),) * len(q))
    named = {rule.id: t for rule, t in zip(policy.rules, thresholds, strict=True)}
    return decide(policy, policy.rules, reading, thresholds=named, stages=("prompt",), model="m")


def test_a_message_under_every_threshold_is_allowed():
    verdict = verdict_on([0.49, 0.2])
    assert (verdict.allowed, verdict.action, verdict.violated) == (True, None, ())


def test_a_rule_is_violated_from_its_threshold_on():
    verdict = verdict_on([0.5, 0.49999])
    assert [rule.id for rule in verdict.violated] == ["r0"]
    assert not verdict.allowed


def test_each_rule_has_its_own_threshold():
    verdict = verdict_on([0.3, 0.8], thresholds=(0.2, 0.9))
    assert [rule.id for rule in verdict.violated] == ["r0"]


@pytest.mark.parametrize(("weak", "strong"), [(a, b) for i, a in enumerate(ACTIONS) for b in ACTIONS[i:]])
def test_the_strongest_action_of_the_violated_rules_is_taken(weak, strong):
    assert verdict_on([0.9, 0.9], actions=(weak, strong)).action == strong
    assert verdict_on([0.9, 0.9], actions=(strong, weak)).action == strong


def test_a_rule_that_is_not_violated_adds_no_action():
    assert verdict_on([0.9, 0.1], actions=("redact", "block")).action == "redact"


@pytest.mark.parametrize(("action", "allowed"), [(a, a == "observe") for a in ACTIONS])
def test_only_observe_lets_a_violation_pass(action, allowed):
    assert verdict_on([0.9, 0.1], actions=(action, "block")).allowed is allowed


def test_no_actions_have_no_strongest():
    assert strongest([]) is None


@pytest.mark.parametrize("q", [[0.0, 0.0], [0.1, 0.7], [1.0, 0.2]])
def test_p_safe_is_one_less_the_largest_q(q):
    assert verdict_on(q).p_safe == pytest.approx(1 - max(q))


def test_p_safe_reads_every_window():
    assert verdict_on([[0.1, 0.2], [0.6, 0.1], [0.1, 0.1]]).p_safe == pytest.approx(0.4)


@pytest.mark.parametrize(("q", "sign"), [(0.1, 1), (0.5, 0), (0.9, -1)])
def test_the_reward_is_positive_where_safe_is_likelier(q, sign):
    assert np.sign(verdict_on([q, 0.0]).reward) == sign


def test_the_reward_falls_as_q_rises():
    rewards = [verdict_on([q, 0.0]).reward for q in (0.0, 0.2, 0.5, 0.9, 1.0)]
    assert rewards == sorted(rewards, reverse=True)


def test_the_most_violated_rule_comes_first():
    assert [rule.id for rule in verdict_on([0.2, 0.8]).rules] == ["r1", "r0"]


def test_a_rule_shows_the_window_with_its_highest_q():
    verdict = verdict_on([[0.1, 0.9], [0.8, 0.1]], spans=((0, 9), (5, 14)))
    assert {rule.id: rule.span for rule in verdict.rules} == {"r0": (5, 14), "r1": (0, 9)}


def test_a_rule_beside_the_point_changes_nothing():
    alone = verdict_on([0.3], actions=("block",), thresholds=(0.5,))
    assert verdict_on([0.3, 0.1]).reward == alone.reward


def test_no_applicable_rules_allow():
    policy = policy_of("block")
    reading = Reading(np.zeros((0, 0)), ())
    verdict = decide(policy, (), reading, thresholds={}, stages=("prompt",), model="m")
    assert (verdict.allowed, verdict.action, verdict.p_safe, verdict.rules) == (True, None, 1.0, ())


def test_the_verdict_says_what_was_read():
    policy = policy_of("block")
    reading = Reading(np.zeros((2, 1)), ((0, 9), (5, 14)), judged_tokens=30, context_tokens=20, context_read=10)
    coverage = decide(
        policy, policy.rules, reading, thresholds={"r0": 0.5}, stages=("prompt",), model="m", unread=("image_url",)
    ).coverage
    assert (coverage.windows, coverage.judged_tokens, coverage.context_tokens) == (2, 30, 20)
    assert (coverage.context_read, coverage.unread) == (10, ("image_url",))


def refusal(*on_error):
    rules = tuple(Rule(id=f"r{i}", text="x", on_error=choice) for i, choice in enumerate(on_error))
    return refuse(Policy(rules=rules), rules, "it broke", thresholds={}, stages=("prompt",), model="m")


def test_a_failed_model_refuses_by_default():
    verdict = refusal(None)
    assert (verdict.allowed, verdict.action, verdict.degraded, verdict.error) == (False, "block", True, "it broke")


def test_a_refusal_reads_as_unsafe():
    verdict = refusal(None)
    assert verdict.p_safe == 0.0
    assert verdict.reward < 0


@pytest.mark.parametrize(
    ("on_error", "allowed"),
    [(("observe",), True), (("observe", "observe"), True), (("observe", "block"), False), (("observe", None), False)],
)
def test_a_failed_model_lets_pass_only_what_every_rule_observes(on_error, allowed):
    assert refusal(*on_error).allowed is allowed
