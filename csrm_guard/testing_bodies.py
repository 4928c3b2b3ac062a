"""What a scripted server says: chat completions, responses and completions, whole and in events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csrm_guard.testing import Reply

__all__ = ["chat_chunks", "chat_completion", "completion", "completion_chunks", "response", "response_events"]


_USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def _chat_head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body.get("model", "scripted")}


def _calls(reply: Reply) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(reply.tool_calls)
    ]


def chat_completion(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """Return a chat completion."""
    choices = []
    for i, text in enumerate(reply.texts):
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if i == 0 and reply.tool_calls:
            message["tool_calls"] = _calls(reply)
        if i == 0 and reply.refusal:
            message["refusal"] = reply.refusal
        if i == 0 and reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        choices.append({"index": i, "message": message, "finish_reason": reason, "logprobs": None})
    return {**_chat_head(body, "chat.completion"), "choices": choices, "usage": _USAGE}


def chat_chunks(body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    """Return the events of a streamed chat completion."""
    head = _chat_head(body, "chat.completion.chunk")

    def chunk(i: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": i, "delta": delta, "finish_reason": reason, "logprobs": None}]}

    def cut(text: str) -> list[str]:
        return _cut(text, reply.piece)

    lanes = [[chunk(i, {"role": "assistant", "content": ""})] for i in range(len(reply.texts))]
    lanes[0] += [chunk(0, {"reasoning_content": text}) for text in cut(reply.reasoning or "")]
    for i, text in enumerate(reply.texts):
        lanes[i] += [chunk(i, {"content": piece}) for piece in cut(text)]
    lanes[0] += [chunk(0, {"refusal": text}) for text in cut(reply.refusal or "")]
    for k, call in enumerate(_calls(reply)):
        named = {**call, "index": k, "function": {"name": call["function"]["name"], "arguments": ""}}
        lanes[0].append(chunk(0, {"tool_calls": [named]}))
        lanes[0] += [
            chunk(0, {"tool_calls": [{"index": k, "function": {"arguments": piece}}]})
            for piece in cut(call["function"]["arguments"])
        ]
    for i, lane in enumerate(lanes):
        lane.append(chunk(i, {}, "tool_calls" if i == 0 and reply.tool_calls else "stop"))
    mixed = [lane[k] for k in range(max(map(len, lanes))) for lane in lanes if k < len(lane)]
    if (body.get("stream_options") or {}).get("include_usage"):
        mixed.append({**head, "choices": [], "usage": _USAGE})
    return mixed


def response(body: dict[str, Any], reply: Reply, identity: str = "resp_1") -> dict[str, Any]:
    """Return a response: its reasoning, a message with the texts as its parts, its calls."""
    usage = {
        "input_tokens": 5,
        "output_tokens": 7,
        "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return {**_head(body, identity), "status": "completed", "output": _items(reply), "usage": usage}


def response_events(body: dict[str, Any], reply: Reply, identity: str = "resp_1") -> list[dict[str, Any]]:
    """Return the events of a streamed response."""
    begun = {**_head(body, identity), "status": "in_progress", "output": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for i, item in enumerate(_items(reply)):
        empty = {**item, "status": "in_progress"}
        for name in ("content", "summary", "arguments"):
            if name in item:
                empty[name] = "" if name == "arguments" else []
        events.append({"type": "response.output_item.added", "output_index": i, "item": empty})
        events += _item_events(item, i, reply.piece)
        events.append({"type": "response.output_item.done", "output_index": i, "item": item})
    events.append({"type": "response.completed", "response": response(body, reply, identity)})
    return [{**event, "sequence_number": n} for n, event in enumerate(events)]


def completion(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """Return a completion of the old kind."""
    choices = [{"index": i, "text": t, "finish_reason": "stop", "logprobs": None} for i, t in enumerate(reply.texts)]
    return {**_completion_head(body), "choices": choices, "usage": _USAGE}


def completion_chunks(body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    """Return the events of a streamed completion."""
    lanes = [
        [(i, piece, None) for piece in _cut(text, reply.piece)] + [(i, "", "stop")]
        for i, text in enumerate(reply.texts)
    ]
    mixed = [lane[k] for k in range(max(map(len, lanes))) for lane in lanes if k < len(lane)]
    return [
        {
            **_completion_head(body),
            "choices": [{"index": i, "text": text, "finish_reason": reason, "logprobs": None}],
        }
        for i, text, reason in mixed
    ]


def _completion_head(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body.get("model", "scripted")}


def _head(body: dict[str, Any], identity: str) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "response",
        "created_at": 1.0,
        "model": body.get("model", "scripted"),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "incomplete_details": None,
    }


def _cut(text: str, piece: int) -> list[str]:
    return [text[k : k + piece] for k in range(0, len(text), piece)]


def _items(reply: Reply) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if reply.reasoning:
        summary = [{"type": "summary_text", "text": reply.reasoning}]
        items.append({"id": "rs_1", "type": "reasoning", "summary": summary})
    content: list[dict[str, Any]] = [{"type": "output_text", "text": t, "annotations": []} for t in reply.texts if t]
    if reply.refusal:
        content.append({"type": "refusal", "refusal": reply.refusal})
    if content:
        items.append({
            "id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content
        })  # fmt: skip
    for k, (name, arguments) in enumerate(reply.tool_calls):
        call = {"name": name, "arguments": arguments, "call_id": f"call_{k}", "status": "completed"}
        items.append({"id": f"fc_{k}", "type": "function_call", **call})
    return items


def _item_events(item: dict[str, Any], i: int, piece: int) -> list[dict[str, Any]]:
    place = {"item_id": item["id"], "output_index": i}
    if item["type"] == "function_call":
        kind, text = "response.function_call_arguments", item["arguments"]
        deltas = [{"type": f"{kind}.delta", **place, "delta": delta} for delta in _cut(text, piece)]
        return [*deltas, {"type": f"{kind}.done", **place, "arguments": text, "name": item["name"]}]
    events = []
    parts = item["summary"] if item["type"] == "reasoning" else item["content"]
    for k, part in enumerate(parts):
        events += _part_events(
            part, {**place, "summary_index" if item["type"] == "reasoning" else "content_index": k}, piece
        )
    return events


def _part_events(part: dict[str, Any], place: dict[str, Any], piece: int) -> list[dict[str, Any]]:
    field = "refusal" if part["type"] == "refusal" else "text"
    kind = {"summary_text": "reasoning_summary_text"}.get(part["type"], part["type"])
    whole = "reasoning_summary_part" if "summary_index" in place else "content_part"
    more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
    deltas = [{"type": f"response.{kind}.delta", **place, **more, "delta": d} for d in _cut(part[field], piece)]
    return [
        {"type": f"response.{whole}.added", **place, "part": {**part, field: ""}},
        *deltas,
        {"type": f"response.{kind}.done", **place, **more, field: part[field]},
        {"type": f"response.{whole}.done", **place, "part": part},
    ]
