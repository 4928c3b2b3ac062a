"""LangChain's messages and chunks as csrm-guard's, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage

from csrm_guard import Message, ToolCall, Verdict
from csrm_guard.flow import Choice, Ending, Request
from csrm_guard.messages import Role
from csrm_guard.stream import Gated, Key, Part

__all__ = [
    "CANDIDATES", "NOTES", "as_message", "as_messages", "changed", "closing", "edited", "gated", "note", "noted",
    "notes_of", "reasoning_of", "text_of", "with_text", "written",
]  # fmt: skip

# In the metadata of a message.
NOTES = "csrm_guard"
CANDIDATES = "csrm_guard_candidates"

# By LangChain's message type, or by the role of a ChatMessage.
_ROLES: dict[str, Role] = {
    "human": "user", "HumanMessageChunk": "user", "ai": "assistant", "AIMessageChunk": "assistant", "function": "tool",
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip
_THOUGHTS = ("reasoning", "thinking", "reasoning_content")
# Blocks that say the same as `tool_calls`.
_CALLS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "input_json_delta", "function_call")


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
    """Return the text of a message, a refusal included, without its reasoning."""
    found: list[Any] = [message.content] if isinstance(message.content, str) else []
    for block in _blocks(message):
        found += [block.get("text"), block.get("refusal")]
    return _joined([*found, message.additional_kwargs.get("refusal")])


def reasoning_of(message: BaseMessage) -> str:
    """Return the reasoning that a message shows, in blocks or beside its content."""
    found: list[Any] = [message.additional_kwargs.get("reasoning_content")]
    for block in (*_blocks(message), message.additional_kwargs.get("reasoning")):
        if isinstance(block, Mapping):
            found += [block.get(name) for name in _THOUGHTS]
            found += [part.get("text") for part in block.get("summary") or () if isinstance(part, Mapping)]
    return _joined(found)


def edited(messages: Sequence[BaseMessage], request: Request) -> list[BaseMessage]:
    """Return the messages with edits and feedback written in."""
    sent = [with_text(m, request.edits[i]) if i in request.edits else m for i, m in enumerate(messages)]
    kinds = {"assistant": AIMessage, "user": HumanMessage}
    return [*sent, *(kinds[message.role](content=message.content) for message in request.feedback)]


def with_text(message: BaseMessage, text: str) -> BaseMessage:
    """Return a message with another text; its images and other parts are kept, what it says elsewhere is not."""
    content: Any = text
    if not isinstance(message.content, str):
        others = [block for block in _blocks(message) if not _speaks(block)]
        content = [{"type": "text", "text": text}, *others]
    beside = {k: v for k, v in message.additional_kwargs.items() if k not in ("refusal", *_THOUGHTS)}
    return message.model_copy(update={"content": content, "additional_kwargs": beside})


def written(reply: BaseMessage, choice: Choice) -> BaseMessage:
    """Return the model's message, or one without what may not be seen, its id and usage kept."""
    if choice.ending == "kept":
        return reply
    change: dict[str, Any] = {"content": choice.text, "additional_kwargs": {}}
    if choice.ending != "redacted" and isinstance(reply, AIMessage):
        change |= {"tool_calls": [], "invalid_tool_calls": []}
        change["response_metadata"] = {**reply.response_metadata, **_reason(choice.ending)}
    if isinstance(reply, AIMessageChunk) and "tool_calls" in change:
        change["tool_call_chunks"] = []
    return reply.model_copy(update=change)


def closing(ending: Ending, text: str) -> AIMessageChunk:
    """Return the chunk with which the policy ends an answer."""
    return AIMessageChunk(content=text, response_metadata=_reason(ending), chunk_position="last")


def noted(message: Any, found: Sequence[tuple[Verdict, Ending]]) -> Any:
    """Return a message with verdicts, and what was done, in its metadata after those that are there."""
    notes = [*message.response_metadata.get(NOTES, ()), *(note(verdict, ending) for verdict, ending in found)]
    return message.model_copy(update={"response_metadata": {**message.response_metadata, NOTES: notes}})


def notes_of(message: BaseMessage, policy_hash: str) -> list[dict[str, Any]]:
    """Return the notes of a policy on a message."""
    return [note for note in message.response_metadata.get(NOTES, ()) if note["policy_hash"] == policy_hash]


def gated(chunk: BaseMessage) -> Gated[Any]:
    """Return a chunk of a stream, or a whole message in it, with what it holds; all belong to choice 0."""
    parts = []
    text, thought = text_of(chunk), reasoning_of(chunk)
    if text:
        parts.append(Part((0, "content", 0), text))
    if thought:
        parts.append(Part((0, "reasoning", 0), thought))
    if isinstance(chunk, AIMessageChunk):
        for call in chunk.tool_call_chunks:
            parts.append(Part((0, "tool", call.get("index") or 0), call.get("args") or "", call.get("name") or ""))
    else:
        parts += [Part((0, "tool", i), call.arguments, call.name) for i, call in enumerate(_calls(chunk))]
    over = getattr(chunk, "chunk_position", None) == "last"
    return Gated(chunk, tuple(parts), frozenset({0}), frozenset({0} if over else ()))


def changed(chunk: BaseMessage, texts: Mapping[Key, str]) -> BaseMessage:
    """Return a chunk in which some of its text was cut; reasoning that was cut is left out."""
    if not texts:
        return chunk
    return with_text(chunk, texts.get((0, "content", 0), text_of(chunk)))


def _reason(ending: Ending) -> dict[str, str]:
    return {"finish_reason": "content_filter" if ending == "blocked" else "stop"}


def note(verdict: Verdict, ending: Ending) -> dict[str, Any]:
    """Return what a trace should keep of a verdict."""
    return {
        "allowed": verdict.allowed,
        "action": verdict.action,
        "ending": ending,
        "p_safe": verdict.p_safe,
        "violated": [rule.id for rule in verdict.violated],
        "policy_hash": verdict.policy_hash,
    }


def _blocks(message: BaseMessage) -> list[Mapping[str, Any]]:
    if isinstance(message.content, str):
        return []
    return [{"type": "text", "text": block} if isinstance(block, str) else block for block in message.content]


def _joined(found: Sequence[Any]) -> str:
    return "\n".join(text for text in found if isinstance(text, str) and text)


def _speaks(block: Mapping[str, Any]) -> bool:
    return any(name in block for name in ("text", "refusal", "summary", *_THOUGHTS))


def _calls(message: BaseMessage) -> tuple[ToolCall, ...]:
    if not isinstance(message, AIMessage):
        return ()
    calls = [ToolCall(call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls]
    calls += [ToolCall(call["name"] or "", call["args"] or "") for call in message.invalid_tool_calls]
    return tuple(calls)


def _unread(message: BaseMessage) -> tuple[str, ...]:
    known = ("text", "refusal", *_THOUGHTS, *_CALLS)
    return tuple(
        str(block.get("type", "unknown"))
        for block in _blocks(message)
        if block.get("type") not in known and not isinstance(block.get("text"), str)
    )
