"""The items of the Responses API as messages: what was said, called and returned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from csrm_guard import Message, ToolCall

__all__ = ["call_of", "item_message", "plain", "reasoning_texts", "texts_in"]

_ROLES = frozenset({"user", "assistant", "system", "developer"})
# Items that stand for something that only the server has.
_REFERENCES = frozenset({"item_reference", "compaction", "compaction_trigger"})
# Fields that hold no text of the conversation: names of things, and bytes.
_MUTE = frozenset({
    "annotations", "background", "call_id", "caller", "container_id", "created_by", "data", "detail",
    "encrypted_content", "environment", "execution", "file_data", "file_id", "fingerprint", "id", "image_url",
    "item_id", "logprobs", "obfuscation", "parsed", "parsed_arguments", "phase", "quality", "role", "score",
    "size", "status", "type"
})  # fmt: skip
_UNREAD = ("image", "file", "audio", "screen")


def plain(item: Any) -> Any:
    """Return an item as a dict; the SDK's own objects may stand among dicts."""
    # Parsed objects do not fit the declared types of some versions, and pydantic would warn.
    return item.model_dump(mode="json", exclude_none=True, warnings=False) if hasattr(item, "model_dump") else item


def item_message(item: Any) -> Message:
    """Return an item of a request or of an answer as a message.

    Messages keep their role, calls are the assistant's, results the tools'. What a kind of item that is not known here
    holds is judged as a call: all of its text.
    """
    item = plain(item)
    if not isinstance(item, Mapping):
        return Message("user", str(item))
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if kind == "message":
        role = item.get("role")
        return Message(role if role in _ROLES else "user", *_content(item.get("content")))
    if kind == "reasoning":
        return Message("assistant", "\n".join(reasoning_texts(item)))
    if kind.endswith("_output"):
        output = item.get("output", item.get("result", item.get("tools")))
        return Message("tool", *_content(output))
    if kind in ("mcp_list_tools", "additional_tools"):
        return Message("tool", "\n".join(texts_in(item.get("tools"))))
    if kind == "mcp_approval_response":
        return Message("user", item.get("reason") or "")
    if kind in _REFERENCES:
        return Message("user", unread=(kind,))
    return Message("assistant", "", (call_of(item),), ("image",) if kind == "image_generation_call" else ())


def reasoning_texts(item: Mapping[str, Any]) -> list[str]:
    """Return the summaries and thoughts of a reasoning item."""
    parts = [*(item.get("summary") or ()), *(item.get("content") or ())]
    return [part["text"] for part in parts if isinstance(part.get("text"), str)]


def call_of(item: Mapping[str, Any]) -> ToolCall:
    """Return the call that an item makes; what a tool that the server runs has returned follows its arguments."""
    kind = str(item["type"])
    name = str(item.get("name") or kind)
    given = item.get("arguments", item.get("input", item.get("code")))
    if not isinstance(given, str):
        rest = {key: value for key, value in item.items() if key not in _MUTE | {"name", "result"} and value}
        return ToolCall(name, json.dumps(rest, ensure_ascii=False, default=str) if rest else "")
    returned = [*texts_in(item.get("output")), *texts_in(item.get("outputs")), *texts_in(item.get("error"))]
    return ToolCall(name, "\n".join([given, *returned]))


def _content(content: object) -> tuple[str, tuple[ToolCall, ...], tuple[str, ...]]:
    """Return the text of a content, no calls, and the types of what a text model cannot read."""
    parts = content if isinstance(content, list | tuple) else [content]
    unread = [
        str(part.get("type"))
        for part in parts
        if isinstance(part, Mapping) and any(name in str(part.get("type")) for name in _UNREAD)
    ]
    return "\n".join(text for part in parts for text in texts_in(part)), (), tuple(unread)


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a value, but for fields that hold none of the conversation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _MUTE:
                yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)
