"""A conversation as a tuple of frozen messages; the last one is judged, the others are context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from csrm_guard.errors import MessageError

__all__ = ["Message", "MessagesLike", "Role", "Stage", "ToolCall", "parse_messages", "stages_of"]

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
Stage: TypeAlias = Literal["prompt", "response", "tool_call", "tool_result"]

# The roles that vendors have renamed; the meaning is the same.
_ALIASES: dict[str, Role] = {"human": "user", "ai": "assistant", "model": "assistant", "function": "tool"}
_ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, **_ALIASES}
_STAGE_ROLES: dict[str, Role] = {
    "prompt": "user",
    "response": "assistant",
    "tool_call": "assistant",
    "tool_result": "tool",
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the assistant wants made.

    Attributes:
        name: the tool's name.
        arguments: the arguments as the vendor sent them, usually JSON text; kept verbatim.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who speaks.
        content: the text; may be empty when there are tool calls.
        tool_calls: what the assistant wants called; judged together with the text.
        unread: the types of the parts that a text model cannot read (images, audio, files).
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to judge."""
        return not (self.content.strip() or self.tool_calls or self.unread)


MessageLike: TypeAlias = str | Message | Mapping[str, Any]
MessagesLike: TypeAlias = MessageLike | Sequence[MessageLike]


def parse_messages(messages: MessagesLike, stage: Stage | None = None) -> tuple[Message, ...]:
    """Return the conversation as messages.

    Args:
        messages: a string, a message, an OpenAI-style dict, or a sequence of these.
        stage: gives a bare string its speaker (`response`: assistant, `tool_result`: tool,
            else user). It does not change a role that a message states itself.

    Raises:
        MessageError: no message, an unknown role or shape, or nothing to judge in the last one.
    """
    if isinstance(messages, str | Message | Mapping):
        messages = [messages]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        raise MessageError(f"messages must be a string, a message or a list of them, not {type(messages).__name__}")
    if not messages:
        raise MessageError("no messages: a conversation needs at least the one that is judged")
    speaker = _STAGE_ROLES[stage] if stage else "user"
    parsed = tuple(_parse(m, speaker, f"messages[{i}]") for i, m in enumerate(messages))
    last = parsed[-1]
    if last.empty:
        raise MessageError(
            f"messages[{len(parsed) - 1}]: the judged message is empty; pass the text that is to be judged last"
        )
    return parsed


def stages_of(message: Message, stage: Stage | None = None) -> tuple[Stage, ...]:
    """Return the stages at which a message is judged: the one asked for, or all that it shows.

    An assistant message with text and tool calls is judged at `response` and `tool_call`.
    """
    if stage is not None:
        return (stage,)
    if message.role == "tool":
        return ("tool_result",)
    if message.role != "assistant":
        return ("prompt",)
    if not message.tool_calls:
        return ("response",)
    return ("response", "tool_call") if message.content.strip() else ("tool_call",)


def _parse(message: MessageLike, speaker: Role, where: str) -> Message:
    if isinstance(message, Message):
        return message
    if isinstance(message, str):
        return Message(speaker, message)
    if not isinstance(message, Mapping):
        raise MessageError(f"{where}: expected a string, a Message or a dict, not {type(message).__name__}")
    role = _role(message, where)
    content, unread = _content(message.get("content"), where)
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        content = f"{content}\n{refusal}" if content else refusal
    return Message(role, content, _tool_calls(message, where), unread)


def _role(message: Mapping[str, Any], where: str) -> Role:
    role = message.get("role")
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise MessageError(f"{where}: unknown role {role!r}; use one of {', '.join(sorted(get_args(Role)))}")
    return known


def _content(content: object, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a `content` field and the types of the parts that are not text."""
    if content is None:
        return "", ()
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise MessageError(f"{where}.content: expected text or a list of parts, not {type(content).__name__}")
    texts: list[str] = []
    unread: list[str] = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise MessageError(f"{where}.content[{i}]: expected a dict, not {type(part).__name__}")
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            texts.append(text)
        else:
            unread.append(str(part.get("type", "unknown")))
    return "\n".join(texts), tuple(unread)


def _tool_calls(message: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, Sequence):
        raise MessageError(f"{where}.tool_calls: expected a list, not {type(calls).__name__}")
    legacy = message.get("function_call")
    if legacy:
        calls = [*calls, {"function": legacy}]
    parsed = []
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise MessageError(f"{where}.tool_calls[{i}]: expected a dict with a function name")
        arguments = function.get("arguments", "")
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False, default=str)
        parsed.append(ToolCall(function["name"], arguments))
    return tuple(parsed)
