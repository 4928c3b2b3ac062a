"""LangChain's messages as csrm-guard's, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage

from csrm_guard import Message, ToolCall
from csrm_guard.flow import Request
from csrm_guard.messages import Role

__all__ = ["as_message", "as_messages", "edited", "finish_reason", "reasoning_of", "text_of"]

# By LangChain's message type, or by the role of a ChatMessage.
_ROLES: dict[str, Role] = {
    "human": "user", "HumanMessageChunk": "user", "ai": "assistant", "AIMessageChunk": "assistant", "function": "tool",
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
_THOUGHTS = ("reasoning", "thinking", "reasoning_content")


def as_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """Return a conversation as csrm-guard reads it."""
    return tuple(as_message(message) for message in messages)


def as_message(message: BaseMessage) -> Message:
    """Return one message: text and reasoning as text, other content as unread.

    Raises:
        ValueError: a role that csrm-guard does not know.
    """
    name = getattr(message, "role", None) or message.type
    if name not in _ROLES:
        raise ValueError(f"unknown role {name!r} of a {type(message).__name__}; use system, user, assistant or tool")
    thought = reasoning_of(message)
    text = "\n".join(part for part in (text_of(message), thought) if part)
    return Message(_ROLES[name], text, _calls(message), _unread(message))


def text_of(message: BaseMessage) -> str:
    """Return the text of a message, without its reasoning."""
    if isinstance(message.content, str):
        return message.content
    found = [block if isinstance(block, str) else block.get("text") for block in message.content]
    return "\n".join(text for text in found if isinstance(text, str) and text)


def reasoning_of(message: BaseMessage) -> str:
    """Return the reasoning that a message shows, in blocks or beside its content."""
    blocks = message.content if isinstance(message.content, list) else []
    found = [block.get(name) for block in blocks if isinstance(block, Mapping) for name in _THOUGHTS]
    found.append(message.additional_kwargs.get("reasoning_content"))
    return "\n".join(text for text in found if isinstance(text, str) and text)


def finish_reason(message: BaseMessage) -> str | None:
    """Return why the answer ended, if it did."""
    reason = message.response_metadata.get("finish_reason") or message.response_metadata.get("stop_reason")
    return reason if isinstance(reason, str) else None


def edited(messages: Sequence[BaseMessage], request: Request) -> list[BaseMessage]:
    """Return the messages with edits and feedback written in."""
    from langchain_core.messages import HumanMessage

    sent = [
        message.model_copy(update={"content": _with_text(message, request.edits[i])}) if i in request.edits else message
        for i, message in enumerate(messages)
    ]
    kinds = {"assistant": AIMessage, "user": HumanMessage}
    return [*sent, *(kinds[message.role](content=message.content) for message in request.feedback)]


def _with_text(message: BaseMessage, text: str) -> Any:
    if isinstance(message.content, str):
        return text
    others = [block for block in message.content if isinstance(block, Mapping) and "text" not in block]
    return [{"type": "text", "text": text}, *others]


def _calls(message: BaseMessage) -> tuple[ToolCall, ...]:
    if not isinstance(message, AIMessage):
        return ()
    calls = [ToolCall(call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls]
    calls += [ToolCall(call["name"] or "", call["args"] or "") for call in message.invalid_tool_calls]
    return tuple(calls)


def _unread(message: BaseMessage) -> tuple[str, ...]:
    if isinstance(message.content, str):
        return ()
    known = ("text", *_THOUGHTS, "tool_use", "tool_call")
    return tuple(
        str(block.get("type", "unknown"))
        for block in message.content
        if isinstance(block, Mapping) and block.get("type") not in known and not isinstance(block.get("text"), str)
    )
