"""Guard an OpenAI-style client: `guard_client(OpenAI(), "support-desk")`.

The client keeps its shape and returns the vendor's own objects. Its chat completions, responses and completions are
judged before and after each call, streams while they run. Other endpoints that generate text (beta, realtime) are
refused, so that nothing leaves unjudged; what generates none (embeddings, files, models) passes through. Works with
`OpenAI`, `AsyncOpenAI`, the Azure clients, and clients of the same make (the Stainless generator's).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from csrm_guard import Guard, Policy
from csrm_guard.stream import Mode
from csrm_guard_adapters.openai_calls import Endpoint, OnBlock, Options, Wasted
from csrm_guard_adapters.openai_chat import ChatFormat
from csrm_guard_adapters.openai_completions import CompletionsFormat
from csrm_guard_adapters.openai_cover import Around, UnguardedEndpoint
from csrm_guard_adapters.openai_formats import Format
from csrm_guard_adapters.openai_responses import ResponsesFormat, RetrieveFormat
from csrm_guard_adapters.verdicts import Verdicts, verdicts_of

__all__ = ["UnguardedEndpoint", "Verdicts", "guard_client", "verdicts_of", "wasted_by"]

Client = TypeVar("Client")


def guard_client(
    client: Client,
    guard: Guard | Policy | str | Path,
    *,
    on_block: OnBlock = "raise",
    speculative: bool = False,
    stream: Mode = "gated",
    every: int = 400,
) -> Client:
    """Return the client with every call judged; the one given is not changed.

    A call takes one more argument, `guard=`: another guard for this call, or None to switch it off.

    Args:
        client: an OpenAI-style client, synchronous or asynchronous.
        guard: a guard, or what `Guard` takes: a policy, the name of a built-in one, a policy file.
        on_block: under the action `block`, raise `csrm_guard.Blocked` or return the vendor's object with
            finish_reason `content_filter` and the policy's fallback as its refusal. A stream that has begun ends in the
            second way.
        speculative: begin the call beside the judgement of the prompt, and cancel it where that blocks. A blocking call
            cannot be interrupted: it ends in the background, and `wasted_by` counts it.
        stream: `gated`: no unjudged character leaves; `sampled`: judged every `every` characters; `end`: judged once.
        every: characters between judgements in mode `sampled`.
    """
    made = guard if isinstance(guard, Guard) else Guard(guard)
    options = Options(made, on_block, speculative, stream, every)
    return cast(Client, _Client(client, options))


def wasted_by(client: object) -> Wasted:
    """Return how many replies, and tokens, a guarded client asked for and did not use.

    Raises:
        TypeError: the client is not guarded.
    """
    options = getattr(client, "_csrm_options", None)
    if not isinstance(options, Options):
        raise TypeError("not a client that guard_client returned")
    return options.wasted


class _Around(Around):
    # Endpoints that generate text and that no format reads.
    _refused: frozenset[str] = frozenset()

    def __init__(self, inner: Any, options: Options) -> None:
        super().__init__(inner)
        self._csrm_options = options

    def __getattr__(self, name: str) -> Any:
        if name in self._refused:
            raise UnguardedEndpoint(
                f"{type(self._inner).__name__}.{name} generates text that guard_client does not judge yet: use "
                "client.chat.completions or client.responses, or call the bare client and judge with Guard.check"
            )
        return super().__getattr__(name)


class _Client(_Around):
    _refused = frozenset({
        "audio", "beta", "conversations", "decisions", "images", "live", "realtime", "videos",
        "get", "patch", "post", "put", "request",  # the client's own, for endpoints that it does not know
    })  # fmt: skip

    @property
    def chat(self) -> Any:
        return _Chat(self._inner.chat, self._csrm_options)

    @property
    def completions(self) -> Any:
        return _Resource(self._inner.completions, self._csrm_options, CompletionsFormat)

    @property
    def responses(self) -> Any:
        return _Responses(self._inner.responses, self._csrm_options, ResponsesFormat)

    @property
    def with_raw_response(self) -> Any:
        return type(self._inner.with_raw_response)(self)

    @property
    def with_streaming_response(self) -> Any:
        return type(self._inner.with_streaming_response)(self)

    def with_options(self, *args: Any, **kwargs: Any) -> Any:
        return _Client(self._inner.with_options(*args, **kwargs), self._csrm_options)

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        return _Client(self._inner.copy(*args, **kwargs), self._csrm_options)

    def __enter__(self) -> Any:
        self._inner.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._inner.__exit__(*exc)

    async def __aenter__(self) -> Any:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._inner.__aexit__(*exc)


class _Chat(_Around):
    @property
    def completions(self) -> Any:
        return _Resource(self._inner.completions, self._csrm_options, ChatFormat)

    @property
    def with_raw_response(self) -> Any:
        return type(self._inner.with_raw_response)(self)

    @property
    def with_streaming_response(self) -> Any:
        return type(self._inner.with_streaming_response)(self)


class _Resource(_Around):
    """An endpoint: `create` and `parse` are guarded, `stream` runs over the guarded `create`."""

    def __init__(self, inner: Any, options: Options, form: Callable[[bool], Format]) -> None:
        super().__init__(inner, options)
        self._form = form  # by whether the reply is parsed

    @property
    def create(self) -> Any:
        return self._guarded(self._inner.create, self._form(False))

    @property
    def parse(self) -> Any:
        return self._guarded(self._inner.parse, self._form(True))

    @property
    def stream(self) -> Any:
        # The vendor's own helper, with this object as its `self`: it calls the guarded `create`.
        return type(self._inner).stream.__get__(self)

    @property
    def with_raw_response(self) -> Any:
        return type(self._inner.with_raw_response)(self)

    @property
    def with_streaming_response(self) -> Any:
        return type(self._inner.with_streaming_response)(self)

    def _guarded(self, inner: Any, form: Format) -> Any:
        endpoint = Endpoint(inner, form, self._csrm_options)
        # The vendor's coroutine functions hide behind plain decorators; its clients do not.
        if _is_async(self._inner):

            async def acall(**kwargs: Any) -> Any:
                return await endpoint.acall(kwargs)

            return acall

        def call(**kwargs: Any) -> Any:
            return endpoint.call(kwargs)

        return call


class _Responses(_Resource):
    """Stored responses are judged when they are fetched; what runs over a socket is refused."""

    _refused = frozenset({"connect"})

    @property
    def retrieve(self) -> Any:
        return self._stored(self._inner.retrieve)

    @property
    def cancel(self) -> Any:
        return self._stored(self._inner.cancel)

    def _stored(self, inner: Any) -> Any:
        call = self._guarded(inner, RetrieveFormat())

        def stored(response_id: str, **kwargs: Any) -> Any:
            return call(response_id=response_id, **kwargs)

        return stored


def _is_async(resource: Any) -> bool:
    name = type(resource).__name__
    return name.startswith("Async") or inspect.iscoroutinefunction(inspect.unwrap(resource.create))
