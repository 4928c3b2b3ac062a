"""How chat completions are read and written: requests, replies and chunks of the OpenAI shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from csrm_guard import Message, ToolCall
from csrm_guard.flow import Choice, Ending, Request
from csrm_guard.messages import parse_messages
from csrm_guard.stream import Channel, Ended, Gated, Part, Passed

__all__ = ["ChatFormat", "as_messages"]

_REASONING = ("reasoning_content", "reasoning")


def as_messages(messages: Sequence[Any]) -> tuple[Message, ...]:
    """Return a request's messages; the SDK's own objects may stand among the dicts."""
    return parse_messages([_plain(message) for message in messages])


def _plain(message: Any) -> Any:
    if hasattr(message, "model_dump"):
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping) or not message.get("tool_calls"):
        return message
    calls = [
        {"function": {"name": call["custom"]["name"], "arguments": call["custom"].get("input", "")}}
        if isinstance(call, Mapping) and "custom" in call
        else call
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


class ChatFormat:
    """Chat completions."""

    def prepared(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, its messages in a list that can be read twice."""
        return {**kwargs, "messages": list(kwargs["messages"])} if "messages" in kwargs else kwargs

    def messages(self, kwargs: dict[str, Any]) -> tuple[Message, ...]:
        """Return the conversation that is sent."""
        return as_messages(kwargs["messages"])

    def request(self, kwargs: dict[str, Any], request: Request) -> dict[str, Any]:
        """Return the arguments with edits and feedback written in."""
        if not request.edits and not request.feedback:
            return kwargs
        sent = [
            _with_text(message, request.edits[i]) if i in request.edits else message
            for i, message in enumerate(kwargs["messages"])
        ]
        sent += [{"role": message.role, "content": message.content} for message in request.feedback]
        return {**kwargs, "messages": sent}

    def choices(self, kwargs: dict[str, Any]) -> int:
        """Return how many answers are asked for."""
        n = kwargs.get("n")
        return n if isinstance(n, int) else 1

    def read(self, reply: Any) -> list[Message]:
        """Return what a reply says: per choice its message, and its reasoning, if it shows any."""
        return [message for _, _, message in _units(reply)]

    def write(self, reply: Any, choices: Sequence[Choice]) -> Any:
        """Return the reply, or, where something may not be seen, a copy without it."""
        if all(choice.ending == "kept" for choice in choices):
            return reply
        changed = reply.model_copy(deep=True)
        for (index, kind, _), choice in zip(_units(reply), choices, strict=True):
            if choice.ending != "kept":
                _rewrite(changed.choices[index], kind, choice)
        return changed

    def stopped(self, kwargs: dict[str, Any], ending: Ending, text: str) -> Any:
        """Return the completion that stands in for a call that was not made."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if ending == "blocked":
            message = {"role": "assistant", "content": None, "refusal": text}
        choice = {"index": 0, "message": message, "finish_reason": _REASON[ending], "logprobs": None}
        return ChatCompletion.model_validate({
            "id": f"chatcmpl-guard-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": str(kwargs.get("model", "")),
            "choices": [choice],
        })  # fmt: skip

    def gated(self, chunk: Any) -> Gated[Any]:
        """Return a chunk with what it holds."""
        parts: list[Part] = []
        for choice in chunk.choices:
            parts += _parts(choice)
        ends = frozenset(choice.index for choice in chunk.choices if choice.finish_reason)
        return Gated(chunk, tuple(parts), frozenset(choice.index for choice in chunk.choices), ends)

    def passed(self, passed: Passed[Any]) -> Any:
        """Return the chunk, or a copy where something of it may not be seen."""
        if not passed.texts and not passed.without:
            return passed.chunk
        chunk = passed.chunk.model_copy(deep=True)
        chunk.choices = [choice for choice in chunk.choices if choice.index not in passed.without]
        for choice in chunk.choices:
            for (index, channel, _), text in passed.texts.items():
                if index == choice.index:
                    _set_text(choice.delta, channel, text)
                    choice.logprobs = None
        return chunk

    def ended(self, ended: Ended, last: Any, kwargs: dict[str, Any]) -> list[Any]:
        """Return the chunks that end a choice which the policy ended.

        Args:
            ended: which, and how.
            last: a chunk of the same stream, for its id and usage; None: there was none.
            kwargs: of the call.
        """
        delta: dict[str, Any] = {"content": ended.text} if ended.ending == "fallback" else {"refusal": ended.text}
        made = []
        for content, reason in ((delta, None), ({}, _REASON[ended.ending])):
            choice = {"index": ended.choice, "delta": content, "finish_reason": reason, "logprobs": None}
            made.append(_chunk(choice, last, kwargs))
        if last is not None and getattr(last, "usage", None) is not None:
            made[-1].usage = last.usage
        return made


_REASON: dict[Ending, str] = {"fallback": "stop", "blocked": "content_filter", "redacted": "stop", "kept": "stop"}


def _chunk(choice: dict[str, Any], last: Any, kwargs: dict[str, Any]) -> Any:
    cls = type(last) if last is not None else ChatCompletionChunk
    return cls.model_validate({
        "id": last.id if last is not None else f"chatcmpl-guard-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": last.created if last is not None else int(time.time()),
        "model": last.model if last is not None else str(kwargs.get("model", "")),
        "choices": [choice],
    })  # fmt: skip


def _with_text(message: Any, text: str) -> Any:
    """Return a message with other text; parts that are not text stay."""
    plain = _plain(message)
    content = plain.get("content")
    if isinstance(content, str) or content is None:
        return {**plain, "content": text}
    others = [part for part in content if isinstance(part, Mapping) and "text" not in part]
    return {**plain, "content": [{"type": "text", "text": text}, *others]}


def _reasoning(holder: Any) -> tuple[str, str] | None:
    for name in _REASONING:
        text = getattr(holder, name, None)
        if isinstance(text, str) and text:
            return name, text
    return None


def _units(reply: Any) -> list[tuple[int, str, Message]]:
    """Return what is judged of a reply: (choice, what, message)."""
    found = []
    for i, choice in enumerate(reply.choices):
        said = choice.message
        text = "\n".join(part for part in (said.content, getattr(said, "refusal", None)) if part)
        calls = tuple(_call(call) for call in getattr(said, "tool_calls", None) or ())
        legacy = getattr(said, "function_call", None)
        if legacy is not None:
            calls = (*calls, ToolCall(legacy.name or "", legacy.arguments or ""))
        unread = ("audio",) if getattr(said, "audio", None) is not None else ()
        found.append((i, "message", Message("assistant", text, calls, unread)))
        thought = _reasoning(said)
        if thought:
            found.append((i, thought[0], Message("assistant", thought[1])))
    return found


def _call(call: Any) -> ToolCall:
    function = getattr(call, "function", None)
    if function is not None:
        return ToolCall(function.name or "", function.arguments or "")
    custom = getattr(call, "custom", None)
    return ToolCall(custom.name, custom.input) if custom is not None else ToolCall(str(call.type), "")


def _rewrite(choice: Any, kind: str, ended: Choice) -> None:
    said = choice.message
    choice.logprobs = None
    if hasattr(said, "parsed"):
        said.parsed = None
    if kind != "message" and ended.ending != "blocked":
        setattr(said, kind, ended.text if ended.ending == "redacted" else None)
        return
    for name in _REASONING:
        if getattr(said, name, None) is not None:
            setattr(said, name, None)
    blocked = ended.ending == "blocked"
    said.content = None if blocked else ended.text
    said.refusal = ended.text if blocked else None
    if ended.ending != "redacted":
        said.tool_calls, said.function_call = None, None
        choice.finish_reason = _REASON[ended.ending]
        if getattr(said, "audio", None) is not None:
            said.audio = None


def _parts(choice: Any) -> list[Part]:
    delta, i = choice.delta, choice.index
    found = []
    for channel in ("content", "refusal"):
        text = getattr(delta, channel, None)
        if text:
            found.append(Part((i, _CHANNEL[channel], 0), text))
    thought = _reasoning(delta)
    if thought:
        found.append(Part((i, "reasoning", 0), thought[1]))
    for call in getattr(delta, "tool_calls", None) or ():
        function = call.function
        name, text = (function.name or "", function.arguments or "") if function is not None else ("", "")
        found.append(Part((i, "tool", call.index), text, name))
    legacy = getattr(delta, "function_call", None)
    if legacy is not None:
        found.append(Part((i, "tool", -1), legacy.arguments or "", legacy.name or ""))
    return found


_CHANNEL: dict[str, Channel] = {"content": "content", "refusal": "refusal"}


def _set_text(delta: Any, channel: Channel, text: str) -> None:
    if channel == "reasoning":
        thought = _reasoning(delta)
        if thought:
            setattr(delta, thought[0], text)
    elif channel != "tool":
        setattr(delta, channel, text)
