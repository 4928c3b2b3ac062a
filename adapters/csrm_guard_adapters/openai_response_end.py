"""The end that the policy puts to a streamed response: what was begun is closed with what has left of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from openai import BaseModel
from openai.types import responses

from csrm_guard.flow import Ending
from csrm_guard.stream import Ended, Key
from csrm_guard_adapters.openai_response_parts import UNTOLD, key_of

__all__ = ["Shown", "head", "spoken"]


def head(ending: Ending, model: str) -> dict[str, Any]:
    """Return a response without output that ends so."""
    return {
        "id": f"resp_guard_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": time.time(),
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **_status(ending),
    }


def spoken(ending: Ending, text: str) -> dict[str, Any]:
    """Return the message in which the policy speaks: a refusal, if it blocks."""
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if ending == "blocked":
        part = {"type": "refusal", "refusal": text}
    identity = f"msg_guard_{uuid.uuid4().hex}"
    return {"id": identity, "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _status(ending: Ending) -> dict[str, Any]:
    if ending == "blocked":
        return {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
    return {"status": "completed", "incomplete_details": None}


class Shown:
    """What the reader of a stream has seen.

    Args:
        model: stands in the response where the vendor has sent none.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._response: dict[str, Any] | None = None
        self._items: dict[int, dict[str, Any]] = {}
        self._open: set[int] = set()
        # By item: the types of its parts, by (contents or summaries, place), and those that have not ended.
        self._parts: dict[int, dict[tuple[str, int], str]] = {}
        self._unended: set[tuple[int, str, int]] = set()
        self._number = -1

    def note(self, event: Any) -> None:
        """Remember an event that has left."""
        self._number = max(self._number, getattr(event, "sequence_number", None) or 0)
        i = getattr(event, "output_index", UNTOLD)
        if getattr(event, "response", None) is not None:
            self._response = event.response.to_dict(warnings=False)
        elif event.type in ("response.output_item.added", "response.output_item.done") and event.item is not None:
            self._items[i] = event.item.to_dict(warnings=False)
            (self._open.add if event.type.endswith("added") else self._open.discard)(i)
        elif "_part." in event.type:
            holder = "summary" if "summary" in event.type else "content"
            k = event.summary_index if holder == "summary" else event.content_index
            self._parts.setdefault(i, {})[holder, k] = event.part.type
            (self._unended.add if event.type.endswith("added") else self._unended.discard)((i, holder, k))

    def ended(self, ended: Ended, left: Mapping[Key, str]) -> list[Any]:
        """Return the events that close what is open, say what the policy says, and end the response.

        Args:
            ended: how.
            left: what has left of each part.
        """
        made = []
        if self._response is None:
            self._response = {**head(ended.ending, self._model), "status": "in_progress", "incomplete_details": None}
            made.append(self._event("response.created", response=self._response))
        for i in sorted(self._open):
            made += self._closed(i, left)
        made += self._said(max(self._items, default=-1) + 1, spoken(ended.ending, ended.text))
        output = [self._items[i] for i in sorted(self._items)]
        final = {**self._response, **_status(ended.ending), "output": output}
        return [*made, self._event(f"response.{final['status']}", response=final)]

    def _closed(self, i: int, left: Mapping[Key, str]) -> list[Any]:
        """Return the ends of an item's open parts, and of the item."""
        item, made = {**self._items[i], "status": "incomplete"}, []
        for (holder, k), kind in sorted(self._parts.get(i, {}).items()):
            part = _part(kind, left.get(key_of(kind, i, k), ""))
            item[holder] = [*(item.get(holder) or ())[:k], part]
            if (i, holder, k) in self._unended:
                made += self._part_done(i, holder, k, part)
        if "arguments" in item:
            item["arguments"] = left.get(key_of("call", i, 0), "")
        self._items[i] = item
        return [*made, self._event("response.output_item.done", output_index=i, item=item)]

    def _part_done(self, i: int, holder: str, k: int, part: dict[str, Any]) -> list[Any]:
        place = {"item_id": self._items[i].get("id"), "output_index": i}
        place |= {"summary_index": k} if holder == "summary" else {"content_index": k}
        named = {"summary_text": "reasoning_summary_text", "refusal": "refusal"}.get(part["type"], part["type"])
        text = {key: value for key, value in part.items() if key != "type"}
        text = text if "text" not in text or named != "output_text" else {"text": part["text"], "logprobs": []}
        whole = "reasoning_summary_part" if holder == "summary" else "content_part"
        return [
            self._event(f"response.{named}.done", **place, **text),
            self._event(f"response.{whole}.done", **place, part=part),
        ]

    def _said(self, i: int, item: dict[str, Any]) -> list[Any]:
        """Return the events of a message that the policy says."""
        (part,) = item["content"]
        place = {"item_id": item["id"], "output_index": i, "content_index": 0}
        text = part.get("text", part.get("refusal"))
        begun = {**item, "status": "in_progress", "content": []}
        delta = {"delta": text, **({"logprobs": []} if part["type"] == "output_text" else {})}
        made = [
            self._event("response.output_item.added", output_index=i, item=begun),
            self._event("response.content_part.added", **place, part=_part(part["type"], "")),
            self._event(f"response.{part['type']}.delta", **place, **delta),
        ]
        self._items[i] = item
        made += self._part_done(i, "content", 0, part)
        return [*made, self._event("response.output_item.done", output_index=i, item=item)]

    def _event(self, kind: str, **fields: Any) -> Any:
        self._number += 1
        # An event that this version of the SDK has no class for is what the SDK makes of one: a model of any fields.
        cls = getattr(responses, _EVENTS[kind], BaseModel)
        return cls.construct(type=kind, sequence_number=self._number, **fields)


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": kind, "refusal": text}
    return {"type": kind, "text": text, **({"annotations": []} if kind == "output_text" else {})}


_EVENTS = {
    "response.created": "ResponseCreatedEvent",
    "response.output_item.added": "ResponseOutputItemAddedEvent",
    "response.output_item.done": "ResponseOutputItemDoneEvent",
    "response.content_part.added": "ResponseContentPartAddedEvent",
    "response.content_part.done": "ResponseContentPartDoneEvent",
    "response.output_text.delta": "ResponseTextDeltaEvent",
    "response.output_text.done": "ResponseTextDoneEvent",
    "response.refusal.delta": "ResponseRefusalDeltaEvent",
    "response.refusal.done": "ResponseRefusalDoneEvent",
    "response.reasoning_summary_part.done": "ResponseReasoningSummaryPartDoneEvent",
    "response.reasoning_summary_text.done": "ResponseReasoningSummaryTextDoneEvent",
    "response.reasoning_text.done": "ResponseReasoningTextDoneEvent",
    "response.completed": "ResponseCompletedEvent",
    "response.incomplete": "ResponseIncompleteEvent",
}
