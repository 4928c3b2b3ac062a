"""The text that the model reads, built only here: messages and rules as pieces of plain text.

A *piece* becomes one run of tokens that starts with the tokenizer's separator token. Only the
template makes separators: the same characters inside a message are tokenized as plain text, so
no message can open a new piece, speak for another role, or add a rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from csrm_guard.messages import Message
from csrm_guard.policy import Rule

__all__ = ["TEMPLATE_VERSION", "render_context", "render_judged", "render_permits", "render_rule"]

TEMPLATE_VERSION = "1"

_LABELS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool result",
}


def render_context(message: Message) -> str:
    """Return an earlier turn as the model reads it."""
    return f"{_LABELS[message.role]}: {_body(message)}"


def render_judged(message: Message) -> tuple[str, str]:
    """Return the label and the body of the judged turn; the body is what windows cut."""
    return f"latest {_LABELS[message.role]}:", _body(message)


def render_rule(rule: Rule) -> str:
    """Return a rule as the model reads it.

    A forbidding rule is read as written, since its text states the norm; a required act is
    named as such, because a bare "cite your sources" reads like a topic.
    """
    return f"required: {rule.text}" if rule.stance == "require" else rule.text


def render_permits(texts: Sequence[str]) -> str:
    """Return permissions as the model reads them: an exception that follows each rule."""
    return "allowed: " + " ; ".join(texts)


def _body(message: Message) -> str:
    calls = [f"tool call: {call.name} {call.arguments}" for call in message.tool_calls]
    return "\n".join([*([message.content] if message.content.strip() else []), *calls])
