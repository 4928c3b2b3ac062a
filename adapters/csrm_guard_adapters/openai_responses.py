"""How the Responses API is read and written: requests and answers. Its streams: `openai_response_events`.

The server may hold more of the conversation (`previous_response_id`, `conversation`, stored prompts): that is not seen
here, and the verdicts on the new messages say so in `coverage.unread`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from openai.types.responses import ParsedResponse, Response

from csrm_guard import Message, MessageError, ToolCall
from csrm_guard.flow import Choice, Ending, Request
from csrm_guard_adapters.openai_formats import replayable
from csrm_guard_adapters.openai_items import call_of, item_message, plain
from csrm_guard_adapters.openai_response_end import head, spoken
from csrm_guard_adapters.openai_response_events import ResponseEvents

__all__ = ["ResponsesFormat", "RetrieveFormat"]


@dataclass(frozen=True, slots=True)
class _Variable:
    """What a stored prompt is filled with."""

    name: str


# Where a message of the conversation stands in the request: the argument, or the place in `input`.
Place: TypeAlias = str | int | _Variable
_HIDDEN = ("previous_response_id", "conversation", "prompt")


@dataclass(frozen=True, slots=True)
class ResponsesFormat:
    """Responses; `parsed`: as `parse` returns them."""

    parsed: bool = False
    judged: frozenset[str] = frozenset({"input", "instructions", "prompt"})

    def prepared(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, its input in a list that can be read twice."""
        return replayable(kwargs, "input")

    def messages(self, kwargs: dict[str, Any]) -> tuple[Message, ...]:
        """Return the conversation that is sent, as far as it is in the request."""
        found = [message for _, message in _placed(kwargs)]
        sent = {**(kwargs.get("extra_body") or {}), **kwargs}
        hidden = tuple(name for name in _HIDDEN if isinstance(sent.get(name), str | Mapping))
        if not hidden:
            return tuple(found)
        if not found or found[-1].role in ("assistant", "system", "developer"):
            return (*found, Message("user", unread=hidden))
        return (*found[:-1], replace(found[-1], unread=found[-1].unread + hidden))

    def request(self, kwargs: dict[str, Any], request: Request) -> dict[str, Any]:
        """Return the arguments with edits and feedback written in."""
        if not request.edits and not request.feedback:
            return kwargs
        places = [place for place, _ in _placed(kwargs)]
        edits = {places[i]: text for i, text in request.edits.items()}
        sent = dict(kwargs)
        given = kwargs.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or ())
        if "input" in edits:
            sent["input"] = edits["input"]
            items = [{"role": "user", "content": edits["input"]}]
        filled = {place.name: text for place, text in edits.items() if isinstance(place, _Variable)}
        if filled:
            sent["prompt"] = {**kwargs["prompt"], "variables": {**kwargs["prompt"]["variables"], **filled}}
        if any(isinstance(place, int) for place in edits):
            sent["input"] = items = [_edited(item, edits.get(i)) for i, item in enumerate(items)]
        if request.feedback:
            sent["input"] = [*items, *({"role": said.role, "content": said.content} for said in request.feedback)]
        return sent

    def choices(self, kwargs: dict[str, Any]) -> int:
        """Return how many answers are asked for."""
        return 1

    def again(self, kwargs: dict[str, Any]) -> bool:
        """Return whether the model may be asked again."""
        return True

    def read(self, reply: Any) -> list[Message]:
        """Return what an answer says: its messages and thoughts one by one, its calls together."""
        return [message for _, message in _units(reply)]

    def write(self, reply: Any, choices: Sequence[Choice]) -> Any:
        """Return the reply, or, where something may not be seen, a copy without it."""
        if all(choice.ending == "kept" for choice in choices):
            return reply
        changed = reply.model_copy(deep=True)
        blocked = next((c for c in choices if c.ending == "blocked"), None)
        if blocked is not None:
            filtered = type(reply).construct(**head("blocked", reply.model))
            changed.output = _said(changed, blocked)
            changed.status, changed.incomplete_details = filtered.status, filtered.incomplete_details
            return changed
        fallback = None
        for (place, _), choice in zip(_units(reply), choices, strict=True):
            item = changed.output[place] if place is not None else None
            if choice.ending == "redacted" and item is not None:
                _rewrite(item, choice.text or "")
            elif choice.ending == "fallback" and item is not None and item.type == "reasoning":
                _rewrite(item, "")
            elif choice.ending == "fallback":
                fallback = choice
        if fallback is not None:
            changed.output = [*(i for i in changed.output if i.type == "reasoning"), *_said(changed, fallback)]
        return changed

    def stopped(self, kwargs: dict[str, Any], ending: Ending, text: str) -> Any:
        """Return the response that stands in for a call that was not made."""
        body = {**head(ending, str(kwargs.get("model", ""))), "output": [spoken(ending, text)]}
        return (ParsedResponse if self.parsed else Response).construct(**body)

    def events(self, kwargs: dict[str, Any]) -> ResponseEvents:
        """Return what reads and writes a stream of this call."""
        return ResponseEvents(str(kwargs.get("model", "")))


@dataclass(frozen=True, slots=True)
class RetrieveFormat(ResponsesFormat):
    """A stored response that is fetched (or cancelled): its answer is judged; what it answers was judged when sent."""

    judged: frozenset[str] = frozenset()

    def messages(self, kwargs: dict[str, Any]) -> tuple[Message, ...]:
        """Return nothing: nothing is sent."""
        return ()

    def again(self, kwargs: dict[str, Any]) -> bool:
        """Return False: a stored answer stays what it is."""
        return False


def _placed(kwargs: dict[str, Any]) -> Iterator[tuple[Place, Message]]:
    """Yield what is sent; among calls and results in a row, calls come first.

    An agent may write the results of calls that were made together right after each; all of them are new.
    """
    instructions = kwargs.get("instructions")
    if isinstance(instructions, str):
        yield "instructions", Message("system", instructions)
    prompt = kwargs.get("prompt")
    for name, value in ((prompt.get("variables") or {}) if isinstance(prompt, Mapping) else {}).items():
        yield _Variable(name), item_message({"role": "user", "content": value})
    given = kwargs.get("input")
    if isinstance(given, str):
        yield "input", Message("user", given)
        return
    results: list[tuple[Place, Message]] = []
    for i, item in enumerate(given if isinstance(given, list) else ()):
        message = item_message(item)
        if message.role == "tool":
            results.append((i, message))
            continue
        if not message.tool_calls:
            yield from results
            results = []
        yield i, message
    yield from results


def _edited(item: Any, text: str | None) -> Any:
    if text is None:
        return item
    item = dict(plain(item))
    if item.get("type") == "reasoning":
        return {**item, "summary": [{"type": "summary_text", "text": text}], "content": None}
    if "output" in item:
        shell = isinstance(item["output"], list) and [part for part in item["output"] if "stdout" in part][:1]
        return {**item, "output": [{**shell[0], "stdout": text, "stderr": ""}] if shell else text}
    kind = "output_text" if item.get("role") == "assistant" else "input_text"
    content = item.get("content")
    if not isinstance(content, list):
        return {**item, "content": text}
    others = [part for part in content if isinstance(part, Mapping) and "text" not in part and "refusal" not in part]
    return {**item, "content": [{"type": kind, "text": text}, *others]}


def _units(reply: Any) -> list[tuple[int | None, Message]]:
    """Return what is judged of an answer: (place in its output, message); the calls, last, have no single place."""
    found: list[tuple[int | None, Message]] = []
    calls, unread = list[ToolCall](), list[str]()
    items = getattr(reply, "output", None) or ()
    # A response that is not finished has no output yet; what is no response holds something else instead.
    if not items and getattr(reply, "object", None) != "response":
        raise MessageError("the server's answer is no response: what it holds instead cannot be judged")
    for i, item in enumerate(items):
        message = item_message(item)
        if item.type in ("message", "reasoning"):
            found.append((i, message))
        else:
            called = message.tool_calls or (call_of(plain(item)),)
            calls += called
            unread += message.unread
    if calls:
        found.append((None, Message("assistant", "", tuple(calls), tuple(unread))))
    return found


def _said(reply: Any, choice: Choice) -> list[Any]:
    """Return the only message of an answer: what the policy says instead."""
    cls = ParsedResponse if isinstance(reply, ParsedResponse) else Response
    return list(cls.construct(output=[spoken(choice.ending, choice.text or "")]).output)


def _rewrite(item: Any, text: str) -> None:
    """Write the text in the place of an item's own."""
    if item.type == "reasoning":
        item.summary, item.content = item.summary[:1], None
        for part in item.summary:
            part.text = text
        return
    first, kept = None, []
    for part in item.content:
        if part.type not in ("output_text", "refusal"):
            kept.append(part)
        elif first is None:
            first = part
            kept.append(part)
    setattr(first, "refusal" if first is not None and first.type == "refusal" else "text", text)
    if first is not None and first.type == "output_text":
        # They point into the text that was.
        first.annotations, first.logprobs = [], None
        if hasattr(first, "parsed"):
            first.parsed = None
    item.content = kept
