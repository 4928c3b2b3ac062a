"""Cut out of a message what breaks a rule: places that a check found, sentences where the model read a window."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from csrm_guard.messages import Message
from csrm_guard.policy import Policy
from csrm_guard.sentences import sentence_spans
from csrm_guard.steps import Judge
from csrm_guard.verdict import Verdict

__all__ = ["cut", "redacted"]


def redacted(policy: Policy, view: tuple[Message, ...], verdict: Verdict) -> Generator[Judge, Any, str | None]:
    """Return the judged message's text without what triggered the verdict; None: cutting does not help.

    A sentence is cut if it is not allowed by itself; a window in which none is, is cut whole. What is left is judged
    again. Tool arguments are not cut: a call with a hole in it is another call.

    Args:
        policy: gives the text that stands in for what is cut.
        view: the conversation; the last message is the one.
        verdict: on it; its violated rules ask to `redact`.
    """
    judged = view[-1]
    if judged.tool_calls:
        (calls,) = yield Judge(((*view[:-1], replace(judged, content="")),))
        if not calls.allowed:
            return None
    exact = [span for rule in verdict.violated if rule.exact for span in rule.spans]
    windows = [span for rule in verdict.violated if not rule.exact for span in rule.spans]
    spans = exact + (yield from _sentences(view, windows))
    text = cut(judged.content, spans, policy.defaults.redaction)
    if not spans or not text.strip():
        return None
    (after,) = yield Judge(((*view[:-1], replace(judged, content=text)),))
    return text if after.allowed else None


def cut(text: str, spans: Sequence[tuple[int, int]], marker: str) -> str:
    """Return the text with the marker in the place of each span; overlapping and touching spans are one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    for start, end in reversed(found):
        # The spaces around a sentence are not part of what it says.
        kept = text[start:end]
        left, right = len(kept) - len(kept.lstrip()), len(kept) - len(kept.rstrip())
        text = text[: start + left] + marker + text[end - right :]
    return text


def _sentences(
    view: tuple[Message, ...], windows: Sequence[tuple[int, int]]
) -> Generator[Judge, Any, list[tuple[int, int]]]:
    text = view[-1].content
    inside = [
        (start, end)
        for start, end in sentence_spans(text)
        if text[start:end].strip() and any(start < w_end and end > w_start for w_start, w_end in windows)
    ]
    if not inside:
        return []
    views = tuple((*view[:-1], replace(view[-1], content=text[start:end], tool_calls=())) for start, end in inside)
    verdicts = yield Judge(views)
    broken = [span for span, verdict in zip(inside, verdicts, strict=True) if not verdict.allowed]
    return [
        *broken,
        *(w for w in windows if not any(start < w[1] and end > w[0] for start, end in broken)),
    ]
