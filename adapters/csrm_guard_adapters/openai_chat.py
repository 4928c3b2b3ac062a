"""How chat completions are read and written: requests, replies and chunks of the OpenAI shape."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai.types.chat import ChatCompletion, ParsedChatCompletion

from csrm_guard import Message, ToolCall
from csrm_guard.flow import Choice, Ending, Request
from csrm_guard.messages import parse_messages
from csrm_guard_adapters.openai_chat_chunks import REASONING, ChatChunks, reasoning_of
from csrm_guard_adapters.openai_formats import REASONS, listed, replayable

__all__ = ["ChatFormat", "as_messages"]


def as_messages(messages: Sequence[Any]) -> tuple[Message, ...]:
    """Return a request's messages; the SDK's own objects may stand among the dicts.

    None, or an empty one at the end, is the vendor's to refuse.
    """
    return parse_messages([*(_plain(message) for message in messages), Message("user", "-")])[:-1]


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


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Chat completions; `parsed`: as `parse` returns them."""

    parsed: bool = False
    judged: frozenset[str] = frozenset({"messages", "n"})

    def prepared(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, its messages in a list that can be read twice."""
        return replayable(kwargs, "messages")

    def messages(self, kwargs: dict[str, Any]) -> tuple[Message, ...]:
        """Return the conversation that is sent."""
        return as_messages(kwargs.get("messages") or ())

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

    def again(self, kwargs: dict[str, Any]) -> bool:
        """Return whether one answer is asked for: of several, the others would be lost."""
        return self.choices(kwargs) == 1

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
        choice = {"index": 0, "message": message, "finish_reason": REASONS[ending], "logprobs": None}
        body: dict[str, Any] = {
            "id": f"chatcmpl-guard-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": str(kwargs.get("model", "")),
            "choices": [choice],
        }
        return ParsedChatCompletion.construct(**body) if self.parsed else ChatCompletion.model_validate(body)

    def events(self, kwargs: dict[str, Any]) -> ChatChunks:
        """Return what reads and writes a stream of this call."""
        return ChatChunks(str(kwargs.get("model", "")))


def _with_text(message: Any, text: str) -> Any:
    """Return a message with other text; parts that are not text stay."""
    plain = _plain(message)
    content = plain.get("content")
    if isinstance(content, str) or content is None:
        return {**plain, "content": text}
    others = [part for part in content if isinstance(part, Mapping) and "text" not in part]
    return {**plain, "content": [{"type": "text", "text": text}, *others]}


def _units(reply: Any) -> list[tuple[int, str, Message]]:
    """Return what is judged of a reply: (choice, what, message)."""
    found = []
    for i, choice in enumerate(listed(reply, "choices")):
        said = choice.message
        audio = getattr(said, "audio", None)
        texts = (said.content, getattr(said, "refusal", None), getattr(audio, "transcript", None))
        text = "\n".join(part for part in texts if part)
        calls = tuple(_call(call) for call in getattr(said, "tool_calls", None) or ())
        legacy = getattr(said, "function_call", None)
        if legacy is not None:
            calls = (*calls, ToolCall(legacy.name or "", legacy.arguments or ""))
        unread = ("audio",) if audio is not None else ()
        found.append((i, "message", Message("assistant", text, calls, unread)))
        thought = reasoning_of(said)
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
    for name in REASONING:
        if getattr(said, name, None) is not None:
            setattr(said, name, None)
    blocked = ended.ending == "blocked"
    said.content = None if blocked else ended.text
    said.refusal = ended.text if blocked else None
    if getattr(said, "audio", None) is not None:
        said.audio = None  # it says what its transcript says
    if ended.ending != "redacted":
        said.tool_calls, said.function_call = None, None
        choice.finish_reason = REASONS[ended.ending]
