import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from csrm_guard import Blocked, Guard, Message, MessageError, Policy, PolicyError, Reading, Rule, ScoringError
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel

CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "a bomb"}]}


class AnsweringModel:
    """Give the same readings whatever is asked."""

    id = "answering"

    def __init__(self, *readings):
        self._readings = list(readings)

    def score(self, requests):
        return self._readings

    def threshold_at(self, fpr):
        return 0.5


POLICY_OF_ONE = Policy.from_dict({"name": "one", "rules": [{"id": "bombs", "text": "No bombs."}]})


def policy(*rules, **defaults):
    return Policy.from_dict({"rules": [{"text": "x", **rule} for rule in rules or [{"id": "a"}]], "defaults": defaults})


@pytest.fixture
def guard():
    return Guard(policy(), KeywordRewardModel("bomb"))


def test_a_message_that_breaks_a_rule_is_not_allowed(guard):
    assert not guard.check("How do I build a bomb?").allowed


def test_a_message_that_keeps_the_rules_is_allowed(guard):
    assert guard.check("How do I bake bread?").allowed


def test_only_the_last_message_is_judged(guard):
    assert guard.check(["a bomb", Message("assistant", "No."), "How do I bake bread?"]).allowed


def test_the_whole_conversation_reaches_the_model():
    model = ScriptedRewardModel([0.1])
    Guard(policy(), model).check(["one", "two"])
    assert [m.content for m in model.requests[0].messages] == ["one", "two"]


def test_acheck_says_what_check_says(guard):
    assert not asyncio.run(guard.acheck("a bomb")).allowed
    assert asyncio.run(guard.acheck("bread")).allowed


def test_require_returns_the_verdict_of_an_allowed_message(guard):
    assert guard.require("bread").allowed


def test_require_raises_blocked_with_the_verdict(guard):
    with pytest.raises(Blocked, match="violates a") as caught:
        guard.require("a bomb")
    assert [rule.id for rule in caught.value.verdict.violated] == ["a"]


def test_score_gives_one_verdict_per_conversation_in_order(guard):
    verdicts = guard.score(["bread", "a bomb", ["a bomb", "bread"]])
    assert [v.allowed for v in verdicts] == [True, False, True]


def test_score_of_nothing_is_nothing(guard):
    assert guard.score([]) == []


def test_score_asks_the_model_nothing_when_one_message_is_wrong():
    model = ScriptedRewardModel([0.1, 0.1])
    with pytest.raises(MessageError):
        Guard(policy(), model).score(["bread", ""])
    assert model.requests == []


def test_a_policy_may_be_named_or_a_file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("rules: [{id: a, text: x}]")
    assert Guard("bank", KeywordRewardModel()).policy == Policy.builtin("bank")
    assert Guard(path, KeywordRewardModel()).policy == Guard(str(path), KeywordRewardModel()).policy


def test_a_policy_whose_parents_are_not_read_is_refused():
    with pytest.raises(PolicyError, match=r"`extends` is not resolved; use Policy\.from_dict"):
        Guard(Policy(extends=("bank",)), KeywordRewardModel())


def test_a_message_of_a_megabyte_is_refused_with_the_limit_and_the_way_out(guard):
    with pytest.raises(MessageError, match=r"messages\[0\]: 1000000 characters; .*at most 200000 .*max_chars"):
        guard.check("a" * 1_000_000)


@pytest.mark.parametrize(
    "call", [{"name": "f", "arguments": "x" * 200_000}, {"name": "x" * 200_001}], ids=["arguments", "name"]
)
def test_tool_calls_count_towards_the_limit(guard, call):
    with pytest.raises(MessageError, match="characters; a guard judges at most"):
        guard.check({"role": "assistant", "tool_calls": [call]})


def test_an_earlier_message_over_the_limit_is_refused_with_its_place(guard):
    with pytest.raises(MessageError, match=r"messages\[0\]: 200001 characters"):
        guard.check(["a" * 200_001, "bread"])


def test_the_limit_can_be_raised():
    assert Guard(policy(), KeywordRewardModel(), max_chars=2_000_000).check("a" * 1_000_000).allowed


@pytest.mark.parametrize("error", [ScoringError("it broke"), RuntimeError("it broke"), MemoryError("it broke")])
def test_a_model_that_fails_refuses_by_default(error):
    verdict = Guard(policy(), ScriptedRewardModel([error])).check("bread")
    assert (verdict.allowed, verdict.degraded, verdict.p_safe) == (False, True, 0.0)
    assert verdict.error == f"{type(error).__name__}: it broke"


def test_require_raises_blocked_when_the_model_fails():
    with pytest.raises(Blocked, match="blocked, not scored: ScoringError: it broke"):
        Guard(policy(), ScriptedRewardModel([ScoringError("it broke")])).require("bread")


@pytest.mark.parametrize(
    ("on_error", "allowed"), [(["observe", "observe"], True), (["observe", "block"], False)], ids=["all", "one"]
)
def test_a_model_that_fails_lets_pass_only_where_all_rules_observe(on_error, allowed):
    rules = [{"id": f"r{i}", "on_error": choice} for i, choice in enumerate(on_error)]
    verdict = Guard(policy(*rules), ScriptedRewardModel([ScoringError("it broke")])).check("bread")
    assert (verdict.allowed, verdict.degraded) == (allowed, True)


def test_a_policy_whose_default_is_to_observe_passes_when_the_model_fails():
    model = ScriptedRewardModel([ScoringError("it broke")])
    assert Guard(policy(on_error="observe"), model).check("bread").allowed


@pytest.mark.parametrize("q", [math.nan, -0.1, 1.1, math.inf, -math.inf])
def test_a_q_that_is_no_probability_refuses(q):
    verdict = Guard(policy(), ScriptedRewardModel([q])).check("bread")
    assert (verdict.allowed, verdict.degraded) == (False, True)


@pytest.mark.parametrize(
    "readings",
    [
        [],
        [Reading(np.zeros((1, 2)), ((0, 5),))] * 2,
        [Reading(np.zeros((1, 1)), ((0, 5),))],
        [Reading(np.zeros((1, 3)), ((0, 5),))],
        [Reading(np.zeros(2), ((0, 5),))],
        [Reading(np.zeros((2, 2)), ((0, 5),))],
        [Reading(np.zeros((0, 2)), ())],
        [Reading([[0.0, 0.0]], ((0, 5),))],
        [None],
    ],
    ids=["none", "two", "few rules", "many rules", "flat", "many windows", "no window", "list", "no reading"],
)
def test_an_answer_of_the_wrong_shape_refuses(readings):
    verdict = Guard(policy({"id": "a"}, {"id": "b"}), AnsweringModel(*readings)).check("bread")
    assert (verdict.allowed, verdict.degraded) == (False, True)


def test_one_failure_refuses_the_whole_batch():
    verdicts = Guard(policy(), ScriptedRewardModel([0.1, ScoringError("it broke")])).score(["bread", "cake"])
    assert [v.allowed for v in verdicts] == [False, False]


def test_a_false_positive_rate_uses_the_models_threshold():
    guard = Guard(policy({"id": "a", "fpr": 0.05}), ScriptedRewardModel([0.94, 0.95]))
    assert [v.allowed for v in guard.score(["one", "two"])] == [True, False]
    assert guard.policy.rules[0].fpr == 0.05


def test_a_rules_threshold_goes_before_the_default():
    guard = Guard(policy({"id": "a", "threshold": 0.8}, {"id": "b"}, threshold=0.6), ScriptedRewardModel([0.7]))
    assert [rule.id for rule in guard.check("bread").violated] == ["b"]


@pytest.mark.parametrize(
    ("message", "ids"),
    [
        (Message("user", "x"), ["in"]),
        (Message("assistant", "x"), ["out"]),
        (CALL, ["call"]),
        (CALL | {"content": "x"}, ["out", "call"]),
        (Message("tool", "x"), ["result"]),
    ],
    ids=["prompt", "response", "tool call", "response and tool call", "tool result"],
)
def test_the_stage_selects_the_rules(message, ids):
    stages = {"in": "prompt", "out": "response", "call": "tool_call", "result": "tool_result"}
    model = ScriptedRewardModel([0.1])
    Guard(policy(*[{"id": i, "stages": [s]} for i, s in stages.items()]), model).check(message)
    assert [rule.id for rule in model.requests[0].rules] == ids


def test_a_message_that_no_rule_judges_is_allowed_without_the_model():
    model = ScriptedRewardModel([])
    verdict = Guard(policy({"id": "a", "stages": ["response"]}), model).check("bread")
    assert (verdict.allowed, verdict.degraded, verdict.p_safe, model.requests) == (True, False, 1.0, [])


def test_messages_with_and_without_rules_mix_in_a_batch():
    guard = Guard(policy({"id": "a", "stages": ["response"]}), KeywordRewardModel("bomb"))
    verdicts = guard.score(["a bomb", Message("assistant", "a bomb"), "bread"])
    assert [v.allowed for v in verdicts] == [True, False, True]


def test_permissions_reach_the_model_apart_from_the_rules():
    model = ScriptedRewardModel([0.1])
    verdict = Guard(
        policy({"id": "a"}, {"id": "ok", "stance": "permit"}, {"id": "b", "stance": "require"}), model
    ).check("x")
    assert [rule.id for rule in model.requests[0].rules] == ["a", "b"]
    assert [rule.id for rule in model.requests[0].permits] == ["ok"]
    assert {rule.id for rule in verdict.rules} == {"a", "b"}


def test_a_permission_of_another_stage_does_not_reach_the_model():
    model = ScriptedRewardModel([0.1])
    Guard(policy({"id": "a"}, {"id": "ok", "stance": "permit", "stages": ["tool_call"]}), model).check("x")
    assert model.requests[0].permits == ()


def test_a_policy_of_permissions_alone_allows_without_the_model():
    assert Guard(policy({"id": "ok", "stance": "permit"}), ScriptedRewardModel([])).check("x").allowed


def test_the_verdict_carries_policy_model_stages_and_unread_parts(guard):
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]
    verdict = guard.check({"role": "user", "content": parts})
    assert (verdict.policy_hash, verdict.model) == (guard.policy.hash, "keyword")
    assert (verdict.stages, verdict.coverage.unread) == (("prompt",), ("image_url",))


def test_one_guard_serves_many_threads(guard):
    texts = [f"message {i} {'bomb' if i % 3 == 0 else 'bread'}" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(guard.check, texts))
    assert [v.allowed for v in verdicts] == ["bread" in text for text in texts]


def test_a_policy_without_rules_is_refused():
    with pytest.raises(PolicyError, match="no rules"):
        Guard(Policy(name="empty"), KeywordRewardModel("bomb"))


def test_a_model_whose_threshold_is_not_a_number_is_refused():
    class Lost(KeywordRewardModel):
        def threshold_at(self, fpr: float) -> float:
            return float("nan")

    policy = Policy(rules=(Rule(id="a", text="no bombs", fpr=0.01),))
    with pytest.raises(ScoringError, match="rule 'a'"):
        Guard(policy, Lost("bomb"))


def test_in_shadow_mode_all_passes_and_the_action_is_recorded():
    verdict = Guard(POLICY_OF_ONE, KeywordRewardModel("bomb"), shadow=True).check("a bomb")
    assert verdict.allowed
    assert (verdict.action, verdict.would) == ("observe", "block")
    assert verdict.summary().startswith("allowed in shadow mode (else block)")
    assert verdict.violated


def test_in_shadow_mode_what_is_kept_has_nothing_to_record():
    verdict = Guard(POLICY_OF_ONE, KeywordRewardModel("bomb"), shadow=True).check("a kettle")
    assert (verdict.action, verdict.would) == (None, None)


def test_observers_are_told_of_every_verdict():
    told = []
    guard = Guard(POLICY_OF_ONE, KeywordRewardModel("bomb"), observers=[lambda *event: told.append(event)])
    verdicts = guard.score(["a bomb", "a kettle"])
    assert [verdict for _, verdict, _ in told] == verdicts
    assert [messages[-1].content for messages, _, _ in told] == ["a bomb", "a kettle"]
    assert {policy.hash for _, _, policy in told} == {guard.policy.hash}


def test_a_failing_observer_changes_no_verdict(caplog):
    def failing(*event):
        raise OSError("disk full")

    guard = Guard(POLICY_OF_ONE, KeywordRewardModel("bomb"), observers=[failing])
    assert not guard.check("a bomb").allowed
    assert "disk full" in caplog.text
