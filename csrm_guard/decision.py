"""From violation probabilities to a verdict: pure functions, all of the policy's logic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from csrm_guard.checks import Finding
from csrm_guard.messages import Stage
from csrm_guard.model import Reading
from csrm_guard.policy import Action, Policy, Rule
from csrm_guard.verdict import Coverage, RuleResult, Timings, Verdict, reward_of

__all__ = ["checked", "decide", "overlook", "refuse", "strongest", "unchecked"]

_ORDER: tuple[Action, ...] = ("observe", "redact", "rewrite", "fallback", "block")


def decide(
    policy: Policy,
    rules: Sequence[Rule],
    reading: Reading,
    *,
    thresholds: Mapping[str, float],
    stages: tuple[Stage, ...],
    model: str,
    unread: tuple[str, ...] = (),
    others: Sequence[RuleResult] = (),
    error: str | None = None,
) -> Verdict:
    """Return the verdict on one reading.

    p_safe is 1 - the largest q over windows and rules: under one threshold of .5 for all rules,
    `allowed` and `reward > 0` say the same, and a rule that is beside the point changes neither
    another rule's q nor, unless it is the largest, the reward.

    Args:
        policy: whose rules they are.
        rules: R applicable rules that forbid or require, in the reading's order.
        reading: q (W, R) and what was read.
        thresholds: q from which each rule is triggered, by rule id.
        stages: where the message stands.
        model: identity of the model.
        unread: types of parts that were not read.
        others: results of the rules that checks decide.
        error: what failed in a check, if one did.
    """
    q = reading.q.max(axis=0) if rules else np.zeros(0)  # (R,)
    where = reading.q.argmax(axis=0) if rules else np.zeros(0, np.int64)
    results = [
        RuleResult(
            id=rule.id,
            q=float(q[i]),
            threshold=thresholds[rule.id],
            violated=bool(q[i] >= thresholds[rule.id]),
            action=policy.action_of(rule),
            severity=rule.severity,
            span=reading.spans[where[i]],
            spans=tuple(s for s, one in zip(reading.spans, reading.q[:, i], strict=True) if one >= thresholds[rule.id]),
        )
        for i, rule in enumerate(rules)
    ]
    results += others
    results.sort(key=lambda result: -result.q)
    action = strongest([r.action for r in results if r.violated])
    p_safe = 1.0 - max((result.q for result in results), default=0.0)
    coverage = Coverage(len(reading.spans), reading.judged_tokens, reading.context_tokens, reading.context_read, unread)
    return Verdict(
        allowed=action in (None, "observe"),
        action=action,
        p_safe=p_safe,
        reward=reward_of(p_safe),
        rules=tuple(results),
        stages=stages,
        policy_hash=policy.hash,
        model=model,
        coverage=coverage,
        timings=Timings(tokenise=reading.tokenise, run=reading.run),
        degraded=error is not None,
        error=error,
    )


def checked(policy: Policy, rule: Rule, found: Sequence[Finding], q: float, threshold: float) -> RuleResult:
    """Return the result of a rule that a check decides.

    Args:
        policy: whose rule it is.
        rule: the rule.
        found: places in the judged message's content.
        q: the largest q over content and tool arguments.
        threshold: q from which the rule is triggered.
    """
    spans = tuple(finding.span for finding in found if finding.q >= threshold)
    best = max(found, key=lambda finding: finding.q).span if found else (0, 0)
    return RuleResult(
        rule.id, q, threshold, q >= threshold, policy.action_of(rule), rule.severity, best, spans, exact=True
    )


def unchecked(policy: Policy, rule: Rule, threshold: float) -> RuleResult:
    """Return the result of a rule whose check failed: its `on_error` decides."""
    blocks = policy.on_error_of(rule) == "block"
    action: Action = "block" if blocks else "observe"
    return RuleResult(rule.id, 1.0 if blocks else 0.0, threshold, blocks, action, rule.severity, span=(0, 0))


def overlook(verdict: Verdict) -> Verdict:
    """Return the verdict in shadow mode: the message passes, and what would have been done is recorded."""
    return replace(verdict, allowed=True, action="observe" if verdict.action else None, would=verdict.action)


def refuse(
    policy: Policy,
    rules: Sequence[Rule],
    error: str,
    *,
    thresholds: Mapping[str, float],
    stages: tuple[Stage, ...],
    model: str,
    others: Sequence[RuleResult] = (),
) -> Verdict:
    """Return the verdict where the model failed: each rule's `on_error` decides.

    One rule with `block` refuses; all must say `observe` for the message to pass. What checks found (`others`) counts
    all the same.
    """
    results = tuple(
        RuleResult(
            id=rule.id,
            q=1.0,
            threshold=thresholds.get(rule.id, policy.defaults.threshold),
            violated=policy.on_error_of(rule) == "block",
            action=policy.action_of(rule),
            severity=rule.severity,
            span=(0, 0),
        )
        for rule in rules
    )
    blocked = any(result.violated for result in results)
    action = strongest([r.action for r in others if r.violated])
    action = "block" if blocked else action or "observe"
    return Verdict(
        allowed=action == "observe",
        action=action,
        p_safe=0.0,
        reward=reward_of(0.0),
        rules=(*results, *others),
        stages=stages,
        policy_hash=policy.hash,
        model=model,
        coverage=Coverage(0),
        degraded=True,
        error=error,
    )


def strongest(actions: Sequence[Action]) -> Action | None:
    """Return the strongest of some actions: observe < redact < rewrite < fallback < block."""
    return max(actions, key=_ORDER.index, default=None)
