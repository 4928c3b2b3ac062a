"""The texts in the events of a streamed response: which part of which item they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from csrm_guard.stream import Channel, Key
from csrm_guard_adapters.openai_items import call_of, plain, texts_in

__all__ = ["FINAL", "UNTOLD", "Spoken", "key_of", "spoken_in"]

FINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
# Parts of an item: more than any has.
_PARTS, _SUMMARIES = 1000, 500
# The place of what belongs to no item that is known.
UNTOLD = -1
# Events that hold no text of the conversation: sound and images, errors, where a text was found.
_MUTE = ("response.audio.d", "partial_image", "annotation", "error", "keepalive")
_CHANNELS: dict[str, Channel] = {
    "reasoning": "reasoning", "refusal": "refusal", "text": "content", "transcript": "content"
}  # fmt: skip
_FIELDS = ("text", "refusal", "arguments", "input", "code", "command")


@dataclass(frozen=True, slots=True)
class Spoken:
    """A text of a part.

    Attributes:
        key: the part.
        text: what is new of it, or all of it.
        whole: whether it is all.
        closes: whether nothing more of the part can come.
        name: of the tool, where it is called.
    """

    key: Key
    text: str
    whole: bool = True
    closes: bool = False
    name: str = ""


def key_of(kind: str, output_index: int, index: int) -> Key:
    """Return the part that a type of content or event belongs to; `index`: among its item's contents or summaries."""
    if "summary" in kind:
        return 0, "reasoning", output_index * _PARTS + _SUMMARIES + index
    for name, channel in _CHANNELS.items():
        if name in kind:
            return 0, channel, output_index * _PARTS + index
    return 0, "tool", output_index


def spoken_in(event: Any) -> list[Spoken]:
    """Return the texts in an event."""
    kind, i = event.type, getattr(event, "output_index", UNTOLD)
    response = getattr(event, "response", None)
    if response is not None:
        return [part for i, item in enumerate(response.output or ()) for part in _spoken_in_item(item, i)]
    if any(name in kind for name in _MUTE):
        return []
    done = kind.endswith("done")
    if "output_item" in kind:
        return list(_spoken_in_item(event.item, i, closes=done)) if event.item is not None else []
    index = getattr(event, "summary_index", getattr(event, "content_index", 0))
    if "part" in kind:
        part_kind = "summary" if "summary" in kind else event.part.type
        text = getattr(event.part, "text", None) or getattr(event.part, "refusal", None) or ""
        return [Spoken(key_of(part_kind, i, index), text, closes=done)]
    key = key_of(kind, i, index)
    delta = getattr(event, "delta", None)
    if delta is not None:
        return [Spoken(key, "\n".join(texts_in(plain(delta))), whole=False)]
    found = next((getattr(event, name) for name in _FIELDS if isinstance(getattr(event, name, None), str)), None)
    # A shell call runs several commands, each with an end of its own.
    return [Spoken(key, found, closes=done and "shell" not in kind)] if found is not None else _unknown(event)


def _spoken_in_item(item: Any, output_index: int, *, closes: bool = True) -> Iterator[Spoken]:
    """Yield the texts in an item of an answer."""
    if item.type == "message":
        for k, part in enumerate(item.content or ()):
            text = getattr(part, "text", None) or getattr(part, "refusal", None) or ""
            yield Spoken(key_of(part.type, output_index, k), text, closes=closes)
    elif item.type == "reasoning":
        for k, part in enumerate(item.summary or ()):
            yield Spoken(key_of("summary", output_index, k), part.text, closes=closes)
        for k, part in enumerate(getattr(item, "content", None) or ()):
            yield Spoken(key_of("reasoning", output_index, k), part.text, closes=closes)
    else:
        call = call_of(plain(item))
        yield Spoken(key_of("call", output_index, 0), call.arguments, closes=closes, name=call.name)


def _unknown(event: Any) -> list[Spoken]:
    """Return the text of an event of a type that is not known here, so that it is judged all the same."""
    text = "\n".join(texts_in(plain(event)))
    return [Spoken((0, "content", UNTOLD), text, whole=False)] if text else []
