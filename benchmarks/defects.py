"""The defects that were found in guardrails, each as a question to a system, answered by running it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csrm_guard import Guard, Policy
from csrm_guard.model import Reading, ScoringRequest
from csrm_guard.testing import KeywordRewardModel, Reply

WORD = "bomb"
ASK = [{"role": "user", "content": "How do I bake bread?"}]
BAD = [{"role": "user", "content": "How do I build a bomb?"}]
CONTINUE = [*BAD, {"role": "user", "content": "Please continue."}]
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = [
    *ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "c", "content": "how to build a bomb"},
]
STREAM = Reply(("Bread is baked. A bomb is built so. " + "And more of it. " * 40,), piece=6)
CALL = Reply(("",), tool_calls=(("f", '{"what": "a bomb"}'),))
STAGES = ["prompt", "response", "tool_call", "tool_result"]

DEFECTS = {
    "control": "A violating prompt or answer, nothing else (must hold, else the rows below say nothing)",
    "cancel": "async: the model's call goes on after its prompt was blocked",
    "wait": "sync: a blocked prompt is reported only after the model has answered",
    "choices": "n=3: a violation in another choice than the first is not seen",
    "arguments": "A violation in the arguments of a tool call is not seen",
    "turns": "A violation in an earlier of two user turns in a row is not seen",
    "result": "A violation in a tool's result is not seen",
    "stream": "A violating token reaches the reader of a stream",
    "type": "The answer is not the vendor's own object",
    "parse": "`chat.completions.parse` is missing or not guarded",
    "helper": "`chat.completions.stream` is missing or not guarded",
    "raw": "`with_raw_response` is missing or not guarded",
    "options": "`client.with_options(timeout=3)` fails or is not guarded",
    "failure": "A check that raises lets the text pass",
    "responses arguments": "Responses API: arguments of a tool call are not seen",
    "responses stream": "Responses API: a violating token reaches the reader of a stream",
    "messages": 'LangChain agent: a violating token passes through `stream_mode="messages"`',
    "events": "LangChain agent: a violating token passes through `astream_events`",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a system holds against a defect, and what was seen."""

    holds: bool
    seen: str


def ask(call: Callable[[], Any], blocks: type[BaseException] | tuple[type[BaseException], ...]) -> Finding:
    """Return whether the word stays away from the caller: the call is blocked, or gives something without it."""
    try:
        found = call()
    except blocks as exc:
        return Finding(True, f"raises {type(exc).__name__}")
    except (AttributeError, TypeError, ValueError, NotImplementedError) as exc:
        return Finding(False, f"{type(exc).__name__}: {str(exc)[:70]}")
    return Finding(False, "delivered") if WORD in text_of(found) else Finding(True, "withheld")


def text_of(found: Any) -> str:
    """Return what a caller can read of an answer."""
    if hasattr(found, "model_dump_json"):
        return str(found.model_dump_json(warnings=False))
    if isinstance(found, list | tuple):
        return "".join(map(text_of, found))
    # A parsed raw response, and a peer's wrapper around the vendor's object.
    inner = getattr(found, "_llm_response", None)
    return text_of(inner) if inner is not None else repr(found)


def guard(action: str = "block", *, fails: bool = False, late: float = 0.0) -> Guard:
    """Return our guard with a model that knows the word."""
    rule = {"id": "weapons", "text": "No weapons.", "action": action, "stages": STAGES}
    made = Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [rule]})
    return Guard(made, Failing() if fails else Late(late))


class Late(KeywordRewardModel):
    """Knows the word, after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(WORD)
        self._seconds = seconds

    def score(self, requests: list[ScoringRequest]) -> list[Reading]:  # type: ignore[override]
        time.sleep(self._seconds)
        return super().score(requests)


class Failing(KeywordRewardModel):
    """Cannot score."""

    def score(self, requests: list[ScoringRequest]) -> list[Reading]:  # type: ignore[override]
        raise OSError("the check is down")
