"""Verdicts as OpenTelemetry's spans, events and metrics: `Guard("bank", observers=[Telemetry()])`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from csrm_guard import Message, Policy, RuleResult, Verdict
from csrm_guard.messages import Stage
from csrm_guard_adapters.otel_names import CAPTURE_CONTENT, SCOPE, Names

try:
    from opentelemetry import context, metrics, trace
    from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber, get_logger
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError('Telemetry needs OpenTelemetry: pip install "csrm-guard[otel]"') from exc

__all__ = ["Telemetry"]

# What a judged message is to the model that is guarded.
_TARGETS: Mapping[Stage, str] = {
    "prompt": "llm_input", "tool_result": "llm_input", "response": "llm_output", "tool_call": "tool_call",
}  # fmt: skip

# When the judging began of which verdicts are told, in nanoseconds: a guard tells of them in the same context.
_BEGAN: ContextVar[int | None] = ContextVar("csrm_guard_began", default=None)


class Telemetry:
    """Tell OpenTelemetry of every verdict.

    * A span per judged message, from the beginning of its judging; an error if the guard could not score.
    * An event per rule, with q as its score (P(the rule is violated): higher is worse) and the label `pass` or `fail`.
      It belongs to the caller's span, if there is one: that of the call to the chat model.
    * Metrics: requests, those blocked and those with errors, how many are in flight, and their duration in seconds.

    Texts are not captured unless asked for. Without an SDK set up nothing happens.

    Args:
        tracer_provider: None: the global one.
        logger_provider: None: the global one.
        meter_provider: None: the global one.
        capture_content: write the judged text on the span; None: as `otel_names.CAPTURE_CONTENT` says.
        every_rule: events for the rules that were kept as well.
        names: what to write.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        capture_content: bool | None = None,
        every_rule: bool = True,
        names: Names | None = None,
    ) -> None:
        self._names = n = names or Names()
        asked = os.environ.get(CAPTURE_CONTENT, "").strip().lower() == "true"
        self._capture = asked if capture_content is None else capture_content
        self._every_rule = every_rule
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._logger = get_logger(SCOPE, logger_provider=logger_provider)
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._requests = meter.create_counter(n.requests, "{request}", "Messages that were judged.")
        self._blocked = meter.create_counter(n.blocked, "{request}", "Messages that were not allowed.")
        self._errors = meter.create_counter(n.errors, "{request}", "Messages that could not be scored.")
        self._active = meter.create_up_down_counter(n.active, "{request}", "Messages that are being judged.")
        self._duration = meter.create_histogram(n.duration, "s", "Time that a caller waited for a verdict.")

    @contextmanager
    def judging(self, count: int) -> Iterator[None]:
        """Count messages as in flight, and take note of the time."""
        token = _BEGAN.set(time.time_ns())
        self._active.add(count)
        try:
            yield
        finally:
            self._active.add(-count)
            _BEGAN.reset(token)

    def __call__(self, messages: tuple[Message, ...], verdict: Verdict, policy: Policy, /) -> None:
        """Write a span, its events and the metrics."""
        ended = time.time_ns()
        began = _BEGAN.get() or ended - int(1e9 * _seconds(verdict))
        self._count(verdict, policy, (ended - began) / 1e9)
        caller = context.get_current()
        span = self._tracer.start_span(
            f"{self._names.run_guardrail} {policy.name}",
            kind=SpanKind.INTERNAL,
            attributes=self._attributes(messages[-1], verdict, policy),
            start_time=began,
        )
        if verdict.degraded:
            span.set_status(Status(StatusCode.ERROR, verdict.error_type))
        parent = (
            caller if trace.get_current_span(caller).get_span_context().is_valid else trace.set_span_in_context(span)
        )
        for result in verdict.rules:
            if result.violated or self._every_rule:
                self._tell(result, verdict, parent)
        span.end(ended)

    def _attributes(self, judged: Message, verdict: Verdict, policy: Policy) -> dict[str, Any]:
        n = self._names
        found: dict[str, Any] = {
            n.operation: n.run_guardrail,
            n.guardrail: SCOPE,
            n.target_type: _TARGETS[verdict.stages[0]],
            n.target_subtype: verdict.stages[0],
            n.verdict: _decision(verdict),
            n.policy_id: verdict.policy_hash,
            n.policy_name: policy.name,
            n.risk_score: 1.0 - verdict.p_safe,
            n.model: verdict.model,
        }
        if verdict.action is not None:
            found[n.action] = verdict.action
        if verdict.would is not None:
            found[n.would] = verdict.would
        if verdict.violated:
            found[n.rule_id] = verdict.violated[0].id
            found[n.reason] = ", ".join(rule.id for rule in verdict.violated)
        if verdict.error_type is not None:
            found[n.error_type] = verdict.error_type
        if self._capture:
            found[n.content] = "\n".join([judged.content, *(call.arguments for call in judged.tool_calls)]).strip()
        return found

    def _tell(self, result: RuleResult, verdict: Verdict, parent: context.Context) -> None:
        n = self._names
        attributes: dict[str, str | float] = {
            n.evaluation_name: result.id,
            n.score_value: result.q,
            n.score_label: "fail" if result.violated else "pass",
            n.explanation: f"q {result.q:.3f}, threshold {result.threshold:.3f}, action {result.action}",
            n.severity: result.severity,
            n.policy_id: verdict.policy_hash,
        }
        if verdict.error_type is not None:
            attributes[n.error_type] = verdict.error_type
        number = SeverityNumber.WARN if result.violated else SeverityNumber.INFO
        now = time.time_ns()
        self._logger.emit(
            LogRecord(
                timestamp=now,
                context=parent,
                severity_number=number,
                attributes=attributes,
                event_name=n.evaluation,
            )
        )

    def _count(self, verdict: Verdict, policy: Policy, seconds: float) -> None:
        n = self._names
        labels = {n.policy_name: policy.name, n.target_subtype: verdict.stages[0]}
        self._requests.add(1, labels)
        self._duration.record(seconds, {**labels, n.verdict: _decision(verdict)})
        if not verdict.allowed:
            self._blocked.add(1, {**labels, n.action: str(verdict.action)})
        if verdict.degraded:
            self._errors.add(1, {**labels, n.error_type: str(verdict.error_type)})


def _decision(verdict: Verdict) -> str:
    if verdict.allowed:
        return "allow"
    return "modify" if verdict.action in ("redact", "rewrite") else "deny"


def _seconds(verdict: Verdict) -> float:
    took = verdict.timings
    return took.tokenise + took.run + took.decide + took.wait
