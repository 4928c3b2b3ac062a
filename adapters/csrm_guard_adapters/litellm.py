"""Guard a function of litellm's shape: `guard_completion(litellm.completion, "support-desk")`.

Such a function takes a chat's `model` and `messages`, and returns an answer or a stream of OpenAI's shape; it may be a
coroutine function (`litellm.acompletion`) or a method (`litellm.Router().completion`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from openai.types.chat import ChatCompletion, ChatCompletionChunk

from csrm_guard import Guard, Policy
from csrm_guard.flow import Ending
from csrm_guard.stream import Mode
from csrm_guard_adapters.openai_calls import Endpoint, OnBlock, Options
from csrm_guard_adapters.openai_chat import ChatFormat
from csrm_guard_adapters.openai_chat_chunks import ChatChunks
from csrm_guard_adapters.verdicts import Verdicts, verdicts_of

__all__ = ["Verdicts", "guard_completion", "verdicts_of"]

Function = TypeVar("Function", bound=Callable[..., Any])


def guard_completion(
    function: Function,
    guard: Guard | Policy | str | Path,
    *,
    on_block: OnBlock = "raise",
    speculative: bool = False,
    stream: Mode = "gated",
    every: int = 400,
) -> Function:
    """Return the function with every call judged; the arguments are those of `guard_client`.

    A call takes one more argument, `guard=`: another guard for this call, or None to switch it off.
    """
    made = guard if isinstance(guard, Guard) else Guard(guard)
    endpoint = Endpoint(function, _format(function), Options(made, on_block, speculative, stream, every))
    named = functools.partial(_named, inspect.signature(function))
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acall(*args: Any, **kwargs: Any) -> Any:
            return await endpoint.acall(named(args, kwargs))

        return cast(Function, acall)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return endpoint.call(named(args, kwargs))

    return cast(Function, call)


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    positional = [name for name, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    positional = positional or ["model", "messages"]  # of a function that hides its parameters
    if len(args) > len(positional):
        raise TypeError(f"takes {len(positional)} positional arguments, {len(args)} were given")
    given = dict(zip(positional, args, strict=False))
    twice = given.keys() & kwargs.keys()
    if twice:
        raise TypeError(f"got {', '.join(sorted(twice))} twice")
    return {**given, **kwargs}


@dataclass(frozen=True, slots=True)
class _Format(ChatFormat):
    """Chat completions in the classes of the function's own library."""

    completion: type[Any] = ChatCompletion
    chunk: type[Any] = ChatCompletionChunk

    def stopped(self, kwargs: dict[str, Any], ending: Ending, text: str) -> Any:
        body = ChatFormat.stopped(self, kwargs, ending, text).model_dump()
        return self.completion(**body)

    def events(self, kwargs: dict[str, Any]) -> ChatChunks:
        return ChatChunks(str(kwargs.get("model", "")), self.chunk)


def _format(function: Callable[..., Any]) -> ChatFormat:
    if (getattr(function, "__module__", "") or "").split(".")[0] != "litellm":
        return ChatFormat()
    litellm = importlib.import_module("litellm")
    return _Format(completion=litellm.ModelResponse, chunk=litellm.ModelResponseStream)
