"""Every name that `csrm_guard_adapters.otel` writes.

The events and their attributes are OpenTelemetry's conventions for generative AI. Those for guardrails are a proposal
(semantic-conventions-genai, pull request 427) that may change: `Telemetry(names=Names(...))` writes others. The metrics
are named as NeMo Guardrails names its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["CAPTURE_CONTENT", "SCOPE", "Names"]

SCOPE: Final = "csrm_guard"

# An environment variable; texts are captured where it is `true`.
CAPTURE_CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


@dataclass(frozen=True, slots=True)
class Names:
    """What spans, events and metrics, and their attributes, are called."""

    operation: str = "gen_ai.operation.name"
    run_guardrail: str = "run_guardrail"
    error_type: str = "error.type"

    guardrail: str = "gen_ai.security.guardrail.name"
    target_type: str = "gen_ai.security.target.type"
    target_subtype: str = "gen_ai.security.target.subtype"
    verdict: str = "gen_ai.security.verdict.type"
    reason: str = "gen_ai.security.verdict.reason"
    action: str = "gen_ai.security.action.type"
    policy_id: str = "gen_ai.security.policy.id"
    policy_name: str = "gen_ai.security.policy.name"
    rule_id: str = "gen_ai.security.policy.rule.id"
    risk_score: str = "gen_ai.security.risk.score"
    content: str = "gen_ai.security.content.input.value"

    evaluation: str = "gen_ai.evaluation.result"
    evaluation_name: str = "gen_ai.evaluation.name"
    score_value: str = "gen_ai.evaluation.score.value"
    score_label: str = "gen_ai.evaluation.score.label"
    explanation: str = "gen_ai.evaluation.explanation"

    model: str = "csrm_guard.model"
    would: str = "csrm_guard.would"
    severity: str = "csrm_guard.rule.severity"

    requests: str = "guardrails.requests"
    blocked: str = "guardrails.requests.blocked"
    errors: str = "guardrails.requests.errors"
    active: str = "guardrails.requests.active"
    duration: str = "guardrails.request.duration"
