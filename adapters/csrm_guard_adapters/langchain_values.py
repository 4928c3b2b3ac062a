"""What flows through a chain, as messages, and back in its own form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue

from csrm_guard_adapters.langchain_messages import text_of

__all__ = ["added", "like", "read"]


def read(value: Any, stage: Literal["prompt", "response"]) -> list[BaseMessage]:
    """Return a value as messages.

    Args:
        value: a string, a message, messages, or a prompt value.
        stage: what a bare string is.

    Raises:
        TypeError: it is nothing that a chat model takes or returns.
    """
    if isinstance(value, str):
        return [AIMessage(value) if stage == "response" else HumanMessage(value)]
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, Sequence) and value and not isinstance(value, bytes):
        return convert_to_messages(value)
    raise TypeError(
        f"a guard takes a string, a message, a prompt value or messages, not {type(value).__name__}: "
        "put it after the prompt template, or after the model"
    )


def like(value: Any, messages: list[BaseMessage]) -> Any:
    """Return messages in the form of the value that they were read from."""
    if isinstance(value, str):
        return text_of(messages[-1])
    if isinstance(value, StringPromptValue):
        return StringPromptValue(text=text_of(messages[-1]))
    if isinstance(value, PromptValue):
        return ChatPromptValue(messages=messages)
    return messages[-1] if isinstance(value, BaseMessage) else messages


def added(whole: Any, chunk: Any) -> Any:
    """Return a streamed value with one more chunk."""
    try:
        return whole + chunk
    except TypeError:
        return chunk  # LangChain's way: what cannot be added is a newer version of the whole
