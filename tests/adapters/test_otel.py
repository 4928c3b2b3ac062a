import asyncio
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from csrm_guard import Guard, Message, Policy, ToolCall
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel
from csrm_guard_adapters.otel import Telemetry
from csrm_guard_adapters.otel_names import CAPTURE_CONTENT, Names
from tests.fresh import python

STAGES = ["prompt", "response", "tool_call", "tool_result"]


def policy(action: str = "block") -> Policy:
    rules = [
        {"id": "bombs", "text": "No bombs.", "action": action, "stages": STAGES, "severity": "high"},
        {"id": "lies", "text": "No lies.", "stages": ["prompt"]},
    ]
    return Policy.from_dict({"name": "p", "rules": rules})


class Collected:
    """A guard's telemetry, in memory."""

    def __init__(self, model: Any = None, made: Policy | None = None, *, shadow: bool = False, **options: Any) -> None:
        self._spans, self._logs, self._metrics = (
            InMemorySpanExporter(),
            InMemoryLogRecordExporter(),
            InMemoryMetricReader(),
        )
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        loggers = LoggerProvider()
        loggers.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        meters = MeterProvider([self._metrics])
        told = Telemetry(tracer_provider=self.tracers, logger_provider=loggers, meter_provider=meters, **options)
        model = model or ScriptedRewardModel([{"bombs": 0.9, "lies": 0.1}])
        self.guard = Guard(made or policy(), model, observers=[told], shadow=shadow)

    @property
    def spans(self) -> list[Any]:
        return list(self._spans.get_finished_spans())

    @property
    def events(self) -> list[Any]:
        return [data.log_record for data in self._logs.get_finished_logs()]

    def metric(self, name: str) -> list[Any]:
        data = self._metrics.get_metrics_data()
        found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
        return list(found[0].data.data_points) if found else []


def test_a_verdict_is_a_span():
    told = Collected()
    told.guard.check("a bomb")
    (span,) = told.spans
    assert span.name == "run_guardrail p"
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "run_guardrail",
        "gen_ai.security.guardrail.name": "csrm_guard",
        "gen_ai.security.target.type": "llm_input",
        "gen_ai.security.target.subtype": "prompt",
        "gen_ai.security.verdict.type": "deny",
        "gen_ai.security.verdict.reason": "bombs",
        "gen_ai.security.action.type": "block",
        "gen_ai.security.policy.id": told.guard.policy.hash,
        "gen_ai.security.policy.name": "p",
        "gen_ai.security.policy.rule.id": "bombs",
        "gen_ai.security.risk.score": pytest.approx(0.9),
        "csrm_guard.model": "scripted",
    }


def test_each_rule_is_an_event():
    told = Collected()
    told.guard.check("a bomb")
    assert [event.event_name for event in told.events] == ["gen_ai.evaluation.result"] * 2
    first, second = (dict(event.attributes) for event in told.events)
    assert (first["gen_ai.evaluation.name"], first["gen_ai.evaluation.score.label"]) == ("bombs", "fail")
    assert (first["gen_ai.evaluation.score.value"], first["csrm_guard.rule.severity"]) == (0.9, "high")
    assert first["gen_ai.evaluation.explanation"] == "q 0.900, threshold 0.500, action block"
    assert (second["gen_ai.evaluation.name"], second["gen_ai.evaluation.score.label"]) == ("lies", "pass")


def test_events_may_be_of_violated_rules_alone():
    told = Collected(every_rule=False)
    told.guard.check("a bomb")
    assert [event.attributes["gen_ai.evaluation.name"] for event in told.events] == ["bombs"]


def test_events_belong_to_the_callers_span():
    told = Collected()
    with told.tracers.get_tracer("app").start_as_current_span("chat") as chat:
        told.guard.check("a bomb")
    assert {event.span_id for event in told.events} == {chat.get_span_context().span_id}
    assert told.spans[0].parent.span_id == chat.get_span_context().span_id


def test_events_belong_to_the_guards_span_where_there_is_no_other():
    told = Collected()
    told.guard.check("a bomb")
    assert {event.span_id for event in told.events} == {told.spans[0].get_span_context().span_id}


def test_the_callers_span_is_found_in_asyncio():
    told = Collected()

    async def run() -> int:
        with told.tracers.get_tracer("app").start_as_current_span("chat") as chat:
            await told.guard.acheck("a bomb")
            return chat.get_span_context().span_id

    assert asyncio.run(run()) == told.spans[0].parent.span_id


@pytest.mark.parametrize(
    ("message", "target"),
    [
        (Message("user", "x"), ("llm_input", "prompt")),
        (Message("assistant", "x"), ("llm_output", "response")),
        (Message("assistant", "", (ToolCall("f", "{}"),)), ("tool_call", "tool_call")),
        (Message("tool", "x"), ("llm_input", "tool_result")),
    ],
    ids=STAGES,
)
def test_what_was_judged_is_told(message: Message, target: tuple[str, str]):
    told = Collected()
    told.guard.check([message])
    found = told.spans[0].attributes
    assert (found["gen_ai.security.target.type"], found["gen_ai.security.target.subtype"]) == target


@pytest.mark.parametrize(
    ("action", "shadow", "decision"),
    [("observe", False, "allow"), ("redact", False, "modify"), ("fallback", False, "deny"), ("block", True, "allow")],
)
def test_what_was_decided_is_told(action: str, shadow: bool, decision: str):
    told = Collected(made=policy(action), shadow=shadow)
    told.guard.check("a bomb")
    assert told.spans[0].attributes["gen_ai.security.verdict.type"] == decision
    assert told.spans[0].attributes.get("csrm_guard.would") == (action if shadow else None)


def test_what_could_not_be_scored_is_an_error_without_its_words():
    told = Collected(ScriptedRewardModel([OSError("secret is gone")]))
    told.guard.check("hello")
    (span,) = told.spans
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "OSError")
    assert span.attributes["error.type"] == "OSError"
    assert {event.attributes["error.type"] for event in told.events} == {"OSError"}
    assert "secret" not in span.to_json()


def test_no_text_is_captured_unless_it_is_asked_for(monkeypatch):
    monkeypatch.delenv(CAPTURE_CONTENT, raising=False)
    told = Collected()
    told.guard.check("a secret bomb")
    assert "secret" not in told.spans[0].to_json() + "".join(repr(event) for event in told.events)


def test_texts_are_captured_where_they_are_asked_for(monkeypatch):
    told = Collected(capture_content=True)
    told.guard.check([Message("assistant", "Done.", (ToolCall("f", "{}"),))])
    assert told.spans[0].attributes["gen_ai.security.content.input.value"] == "Done.\n{}"
    monkeypatch.setenv(CAPTURE_CONTENT, "true")
    told = Collected()
    told.guard.check("hello")
    assert told.spans[0].attributes["gen_ai.security.content.input.value"] == "hello"


def test_requests_and_blocks_are_counted():
    told = Collected(KeywordRewardModel("bomb"))
    told.guard.score(["a bomb", "hello", "how?"])
    assert sum(point.value for point in told.metric("guardrails.requests")) == 3
    (blocked,) = told.metric("guardrails.requests.blocked")
    assert blocked.value == 1
    assert dict(blocked.attributes) == {
        "gen_ai.security.policy.name": "p",
        "gen_ai.security.target.subtype": "prompt",
        "gen_ai.security.action.type": "block",
    }
    assert sum(point.count for point in told.metric("guardrails.request.duration")) == 3


def test_errors_are_counted():
    told = Collected(ScriptedRewardModel([OSError("gone")]))
    told.guard.check("hello")
    (point,) = told.metric("guardrails.requests.errors")
    assert (point.value, point.attributes["error.type"]) == (1, "OSError")


class Looking(KeywordRewardModel):
    """Looks, while it scores, at how many are in flight."""

    def look(self) -> None:
        self.seen: list[int] = []

    def score(self, requests):
        self.seen += [point.value for point in self.told.metric("guardrails.requests.active")]
        return super().score(requests)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_those_in_flight_are_counted(kind: str):
    model = Looking("bomb")
    model.look()
    model.told = told = Collected(model)
    _ = told.guard.score(["a", "b"]) if kind == "sync" else asyncio.run(told.guard.ascore(["a", "b"]))
    assert model.seen == [2]
    assert [point.value for point in told.metric("guardrails.requests.active")] == [0]


def test_a_span_lasts_as_long_as_the_judging():
    told = Collected()
    told.guard.check("a bomb")
    (point,) = told.metric("guardrails.request.duration")
    assert told.spans[0].end_time - told.spans[0].start_time == pytest.approx(point.sum * 1e9, abs=1)
    assert point.sum > 0


def test_names_may_be_others():
    told = Collected(names=Names(evaluation="my.event", requests="my.requests"))
    told.guard.check("a bomb")
    assert {event.event_name for event in told.events} == {"my.event"}
    assert told.metric("my.requests")


def test_without_an_sdk_nothing_happens():
    assert not Guard(policy(), KeywordRewardModel("bomb"), observers=[Telemetry()]).check("a bomb").allowed


def test_without_opentelemetry_the_error_names_the_fix():
    code = "import sys; sys.modules['opentelemetry'] = None\nfrom csrm_guard_adapters.otel import Telemetry"
    assert 'pip install "csrm-guard[otel]"' in python(code).stderr
