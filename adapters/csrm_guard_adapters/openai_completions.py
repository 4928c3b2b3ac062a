"""How completions of the old kind (a prompt, not a conversation) are read and written."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai.types import Completion

from csrm_guard import Message
from csrm_guard.flow import Choice, Ending, Request
from csrm_guard.stream import Ended, Gated, Part, Passed
from csrm_guard_adapters.openai_formats import REASONS, listed, replayable

__all__ = ["CompletionsFormat"]


@dataclass(frozen=True, slots=True)
class CompletionsFormat:
    """Completions; several prompts are judged one by one, the answers after all of them."""

    parsed: bool = False
    judged: frozenset[str] = frozenset({"prompt", "suffix", "n"})

    def prepared(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, its prompts in a list that can be read twice."""
        return replayable(kwargs, "prompt")

    def messages(self, kwargs: dict[str, Any]) -> tuple[Message, ...]:
        """Return the prompts, and what the answer is to end in; a prompt of token ids cannot be read."""
        prompts = _prompts(kwargs)
        found = [Message("user", p) if isinstance(p, str) else Message("user", unread=("tokens",)) for p in prompts]
        suffix = kwargs.get("suffix")
        return tuple([*found, Message("user", suffix)] if isinstance(suffix, str) and suffix else found)

    def request(self, kwargs: dict[str, Any], request: Request) -> dict[str, Any]:
        """Return the arguments with edits and feedback written in."""
        if not request.edits and not request.feedback:
            return kwargs
        sent, prompts = dict(kwargs), _prompts(kwargs)
        if len(prompts) in request.edits:
            sent["suffix"] = request.edits[len(prompts)]
        prompts = [request.edits.get(i, prompt) for i, prompt in enumerate(prompts)]
        if request.feedback:
            prompts[0] = "\n\n".join([prompts[0], *(said.content for said in request.feedback), ""])
        sent["prompt"] = prompts if isinstance(kwargs.get("prompt"), list) else prompts[0]
        return sent

    def choices(self, kwargs: dict[str, Any]) -> int:
        """Return how many answers are asked for: `n` to each prompt."""
        n = kwargs.get("n")
        return (n if isinstance(n, int) else 1) * max(1, len(_prompts(kwargs)))

    def again(self, kwargs: dict[str, Any]) -> bool:
        """Return whether one answer is asked for, to a prompt in words."""
        return self.choices(kwargs) == 1 and all(isinstance(prompt, str) for prompt in _prompts(kwargs))

    def read(self, reply: Any) -> list[Message]:
        """Return what a reply says, choice by choice."""
        return [Message("assistant", choice.text or "") for choice in listed(reply, "choices")]

    def write(self, reply: Any, choices: Sequence[Choice]) -> Any:
        """Return the reply, or, where something may not be seen, a copy without it."""
        if all(choice.ending == "kept" for choice in choices):
            return reply
        changed = reply.model_copy(deep=True)
        for said, choice in zip(changed.choices, choices, strict=True):
            if choice.ending != "kept":
                # There is no place for a refusal: what is blocked is empty.
                said.text = "" if choice.ending == "blocked" else choice.text
                said.logprobs = None
            if choice.ending in ("blocked", "fallback"):
                said.finish_reason = REASONS[choice.ending]
        return changed

    def stopped(self, kwargs: dict[str, Any], ending: Ending, text: str) -> Any:
        """Return the completion that stands in for a call that was not made."""
        return _completion(_head(str(kwargs.get("model", ""))), 0, ending, text)

    def events(self, kwargs: dict[str, Any]) -> _Chunks:
        """Return what reads and writes a stream of this call."""
        return _Chunks(str(kwargs.get("model", "")))


class _Chunks:
    def __init__(self, model: str) -> None:
        self._head = _head(model)

    def gated(self, event: Any) -> Gated[Any]:
        parts = tuple(Part((choice.index, "content", 0), choice.text) for choice in event.choices if choice.text)
        ends = frozenset(choice.index for choice in event.choices if choice.finish_reason)
        return Gated(event, parts, frozenset(choice.index for choice in event.choices), ends)

    def out(self, out: Passed[Any] | Ended) -> list[Any]:
        if isinstance(out, Ended):
            return [_completion(self._head, out.choice, out.ending, out.text)]
        self._head = {"id": out.chunk.id, "created": out.chunk.created, "model": out.chunk.model}
        if not out.texts and not out.without:
            return [out.chunk]
        chunk = out.chunk.model_copy(deep=True)
        chunk.choices = [choice for choice in chunk.choices if choice.index not in out.without]
        for choice in chunk.choices:
            text = out.texts.get((choice.index, "content", 0))
            if text is not None:
                choice.text, choice.logprobs = text, None
        return [chunk]


def _prompts(kwargs: dict[str, Any]) -> list[Any]:
    """Return the prompts of a call; one of token ids is a list of numbers."""
    prompt = kwargs.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [prompt] if isinstance(prompt, str | list) and prompt else []


def _head(model: str) -> dict[str, Any]:
    return {"id": f"cmpl-guard-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _completion(head: dict[str, Any], index: int, ending: Ending, text: str) -> Completion:
    said = "" if ending == "blocked" else text
    choice = {"index": index, "text": said, "finish_reason": REASONS[ending], "logprobs": None}
    return Completion.model_validate({**head, "object": "text_completion", "choices": [choice]})
