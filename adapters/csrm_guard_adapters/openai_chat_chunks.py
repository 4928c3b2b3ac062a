"""How a stream of chat completions is read and written, chunk by chunk."""

from __future__ import annotations

import time
import uuid
from typing import Any

from openai.types.chat import ChatCompletionChunk

from csrm_guard.stream import Channel, Ended, Gated, Part, Passed
from csrm_guard_adapters.openai_formats import REASONS

__all__ = ["REASONING", "ChatChunks", "reasoning_of"]

# Where servers of the OpenAI shape put a model's thoughts.
REASONING = ("reasoning_content", "reasoning")
# The place of a transcript among the texts of a choice.
_AUDIO = 1


class ChatChunks:
    """One stream.

    Args:
        model: as asked for; stands in chunks where the vendor has sent none.
        made: the class of chunks that the vendor has not sent.
    """

    def __init__(self, model: str, made: type[Any] = ChatCompletionChunk) -> None:
        self._model, self._made = model, made
        self._last: Any = None

    def gated(self, event: Any) -> Gated[Any]:
        """Return a chunk with what it holds."""
        parts: list[Part] = []
        choices = event.choices or ()
        for choice in choices:
            parts += _parts(choice)
        ends = frozenset(choice.index for choice in choices if choice.finish_reason)
        return Gated(event, tuple(parts), frozenset(choice.index for choice in choices), ends)

    def out(self, out: Passed[Any] | Ended) -> list[Any]:
        """Return the chunk that may leave, a copy where something of it may not be seen; or those that end a choice."""
        if isinstance(out, Ended):
            return self._ended(out)
        self._last = out.chunk
        if not out.texts and not out.without:
            return [out.chunk]
        chunk = out.chunk.model_copy(deep=True)
        chunk.choices = [choice for choice in chunk.choices if choice.index not in out.without]
        for choice in chunk.choices:
            for (index, channel, place), text in out.texts.items():
                if index == choice.index and place == _AUDIO:
                    choice.delta.audio = None  # it says what its transcript says
                elif index == choice.index:
                    _set_text(choice.delta, channel, text)
                    choice.logprobs = None
        return [chunk]

    def _ended(self, ended: Ended) -> list[Any]:
        delta: dict[str, Any] = {"content": ended.text} if ended.ending == "fallback" else {"refusal": ended.text}
        made = []
        for content, reason in ((delta, None), ({}, REASONS[ended.ending])):
            made.append(self._chunk({
                "index": ended.choice, "delta": content, "finish_reason": reason, "logprobs": None
            }))  # fmt: skip
        if getattr(self._last, "usage", None) is not None:
            made[-1].usage = self._last.usage
        return made

    def _chunk(self, choice: dict[str, Any]) -> Any:
        last = self._last
        cls = type(last) if last is not None else self._made
        head = {"id": f"chatcmpl-guard-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._model}
        if last is not None:
            head = {"id": last.id, "created": last.created, "model": last.model}
        return cls.model_validate({**head, "object": "chat.completion.chunk", "choices": [choice]})


def reasoning_of(holder: Any) -> tuple[str, str] | None:
    """Return the field of a message or delta that holds thoughts, and its text."""
    for name in REASONING:
        text = getattr(holder, name, None)
        if isinstance(text, str) and text:
            return name, text
    return None


def _parts(choice: Any) -> list[Part]:
    delta, i = choice.delta, choice.index
    found = []
    channels: tuple[Channel, Channel] = ("content", "refusal")
    for channel in channels:
        text = getattr(delta, channel, None)
        if text:
            found.append(Part((i, channel, 0), text))
    thought = reasoning_of(delta)
    if thought:
        found.append(Part((i, "reasoning", 0), thought[1]))
    transcript = _field(getattr(delta, "audio", None), "transcript")
    if transcript:
        found.append(Part((i, "content", _AUDIO), transcript))
    for call in getattr(delta, "tool_calls", None) or ():
        called = getattr(call, "function", None) or getattr(call, "custom", None)
        text = _field(called, "arguments") or _field(called, "input")
        found.append(Part((i, "tool", call.index), text, _field(called, "name")))
    legacy = getattr(delta, "function_call", None)
    if legacy is not None:
        found.append(Part((i, "tool", -1), legacy.arguments or "", legacy.name or ""))
    return found


def _field(holder: Any, name: str) -> str:
    """Return a text that an object, or a dict that the SDK has no type for, holds."""
    found = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
    return found if isinstance(found, str) else ""


def _set_text(delta: Any, channel: Channel, text: str) -> None:
    if channel == "reasoning":
        thought = reasoning_of(delta)
        if thought:
            setattr(delta, thought[0], text)
    elif channel != "tool":
        setattr(delta, channel, text)
