"""How a stream of the Responses API is read and written, event by event.

The same text comes several times: in deltas, at the end of its part, of its item and of the response. Each time it is
compared with what was judged, and what is new of it is judged; what was cut from the deltas is cut everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csrm_guard.stream import Ended, Gated, Key, Part, Passed
from csrm_guard_adapters.openai_response_end import Shown
from csrm_guard_adapters.openai_response_parts import FINAL, UNTOLD, key_of, spoken_in

__all__ = ["ResponseEvents"]


@dataclass(frozen=True, slots=True)
class _Read:
    event: Any
    parts: tuple[Part, ...]


class ResponseEvents:
    """One stream.

    Args:
        model: as asked for; stands in the response where the vendor has sent none.
    """

    def __init__(self, model: str) -> None:
        self._came: dict[Key, str] = {}
        self._left: dict[Key, str] = {}
        self._cut: set[Key] = set()
        self._shown = Shown(model)

    def gated(self, event: Any) -> Gated[Any]:
        """Return an event with what it holds."""
        parts, closes = [], set()
        for found in spoken_in(event):
            came = self._came.get(found.key, "")
            new = _rest(came, found.text) if found.whole else found.text
            self._came[found.key] = came + new
            parts.append(Part(found.key, new, found.name))
            closes |= {found.key} if found.closes else set()
        ends = frozenset({0} if event.type in FINAL else ())
        return Gated(_Read(event, tuple(parts)), tuple(parts), frozenset({0}), ends, frozenset(closes))

    def out(self, out: Passed[Any] | Ended) -> list[Any]:
        """Return the event that may leave, a copy where something of it may not be seen; or those that end all."""
        if isinstance(out, Ended):
            return self._shown.ended(out, self._left)
        event, parts = out.chunk.event, out.chunk.parts
        for part in parts:
            self._left[part.key] = self._left.get(part.key, "") + out.texts.get(part.key, part.text)
        self._cut |= out.texts.keys()
        if any(key[2] == UNTOLD for key in out.texts):
            return []
        if any(part.key in self._cut for part in parts):
            event = self._rewritten(event, out)
        self._shown.note(event)
        return [event]

    def _rewritten(self, event: Any, out: Passed[Any]) -> Any:
        """Return a copy of an event with what may be seen of its texts."""
        event = event.model_copy(deep=True)
        if getattr(event, "response", None) is not None:
            for i, item in enumerate(event.response.output or ()):
                self._rewrite_item(item, i)
        elif hasattr(event, "item"):
            self._rewrite_item(event.item, event.output_index)
        else:
            (part,) = out.chunk.parts
            holder = getattr(event, "part", event)
            if hasattr(event, "delta"):
                event.delta = out.texts.get(part.key, part.text)
            else:
                _set_text(holder, self._left[part.key])
            if hasattr(event, "logprobs"):
                event.logprobs = []
        return event

    def _rewrite_item(self, item: Any, output_index: int) -> None:
        for kind in ("summary", "content"):
            for k, part in enumerate(getattr(item, kind, None) or ()):
                key = key_of(part.type, output_index, k)
                if key in self._cut:
                    _set_text(part, self._left[key])


def _rest(came: str, whole: str) -> str:
    """Return what a text adds to what came of it before."""
    if whole.startswith(came):
        return whole[len(came) :]
    return "" if came.endswith(whole) else f"\n{whole}"


def _set_text(holder: Any, text: str) -> None:
    """Write the text in the place of an event's or a part's own."""
    if hasattr(holder, "refusal"):
        holder.refusal = text
        return
    holder.text = text
    if hasattr(holder, "annotations"):
        holder.annotations = []  # they point into the text that was
    if hasattr(holder, "logprobs"):
        holder.logprobs = []
