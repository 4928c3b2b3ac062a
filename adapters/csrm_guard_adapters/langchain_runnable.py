"""A guard as a step of a chain: `prompt | GuardRunnable(guard) | model | GuardRunnable(guard) | parser`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import reduce
from itertools import chain
from typing import Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig

from csrm_guard import Blocked, Guard, Verdict
from csrm_guard.drivers import adrive, apump, drive, pump
from csrm_guard.flow import Admission, Choice, Ending, Request, screen, together
from csrm_guard.steps import Judge
from csrm_guard.stream import Gated, Mode
from csrm_guard_adapters.langchain_messages import as_message, as_messages, edited, gated, noted, text_of, written
from csrm_guard_adapters.langchain_outlet import Outlet
from csrm_guard_adapters.langchain_source import AsyncSource, Source
from csrm_guard_adapters.langchain_values import added, like, read

__all__ = ["GuardRunnable"]


class GuardRunnable(Runnable[Any, Any]):
    """Pass on what the policy allows; a prompt before a model, an answer after it.

    It takes a string, a message, a list of messages or a prompt value, and returns the same object, one with places cut
    (`redact`), or, for an answer, one with the policy's fallback as its text. A prompt that is stopped raises
    `csrm_guard.Blocked`: whatever were returned would be sent to the model. The verdicts on an answer stand in its
    `response_metadata["csrm_guard"]`.

    `with_fallbacks` retries every exception unless told otherwise. Name what is to be retried
    (`exceptions_to_handle=(OSError,)`) and a block ends the chain; `exceptions_to_handle=(Blocked,)` answers it.

    Args:
        guard: judges.
        stage: what a bare string is.
        on_block: `raise` `csrm_guard.Blocked`, or `return` the policy's fallback, for a prompt as well.
        stream_mode: when streamed text leaves (`csrm_guard.stream`).
    """

    def __init__(
        self,
        guard: Guard,
        *,
        stage: Literal["prompt", "response"] = "prompt",
        on_block: Literal["raise", "return"] = "raise",
        stream_mode: Mode = "gated",
    ) -> None:
        self.guard, self.stage, self.on_block, self.stream_mode = guard, stage, on_block, stream_mode

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return what may pass.

        Raises:
            Blocked: it may not.
            TypeError: it is nothing that a chat model takes or returns.
        """
        return self._call_with_config(self._one, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Do what `invoke` does without blocking the event loop."""
        return await self._acall_with_config(self._aone, input, config)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Return what may pass of each input; all are judged in one pass."""
        return self._batch_with_config(self._many, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Do what `batch` does without blocking the event loop."""
        return await self._abatch_with_config(self._amany, inputs, config, return_exceptions=return_exceptions)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield what may pass."""
        yield from self.transform(iter([input]), config)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Yield what may pass."""

        async def alone() -> AsyncIterator[Any]:
            yield input

        async for chunk in self.atransform(alone(), config):
            yield chunk

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield the chunks of an answer as they are judged; a prompt is judged when it is complete."""
        source = Source(input)

        def passed(chunks: Iterator[Any]) -> Iterator[Any]:
            yield from self._let_out(chunks)
            source.close()

        # A name, and no `yield from`: a reader that leaves would end LangChain's loop first, which then reads on.
        traced = self._transform_stream_with_config(source, passed, config)
        try:
            for chunk in traced:  # noqa: UP028
                yield chunk
        finally:
            source.close()

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Yield the chunks of an answer as they are judged; a prompt is judged when it is complete."""
        source = AsyncSource(input)

        async def passed(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for chunk in self._alet_out(chunks):
                yield chunk
            await source.aclose()

        traced = self._atransform_stream_with_config(source, passed, config)
        try:
            async for chunk in traced:
                yield chunk
        finally:
            await source.aclose()

    def _one(self, value: Any) -> Any:
        return _unless_stopped(drive(self._judged(value), self.guard.score))

    async def _aone(self, value: Any) -> Any:
        return _unless_stopped(await adrive(self._judged(value), self.guard.ascore))

    def _many(self, values: list[Any]) -> list[Any]:
        return drive(together([self._judged(value) for value in values]), self.guard.score)

    async def _amany(self, values: list[Any]) -> list[Any]:
        return await adrive(together([self._judged(value) for value in values]), self.guard.ascore)

    def _judged(self, value: Any) -> Generator[Judge, Any, Any]:
        """Return what may pass, or the exception that says why not."""
        try:
            messages = read(value, self.stage)
            talk = as_messages(messages)
        except (TypeError, ValueError) as exc:
            return exc
        found = yield from screen(self.guard.policy, talk)
        try:
            return self._passed(value, messages, found)
        except Blocked as exc:
            return exc

    def _passed(self, value: Any, messages: list[BaseMessage], found: Admission[Any]) -> Any:
        answered = isinstance(messages[-1], AIMessage) and not as_message(messages[-1]).empty
        if found.stopped is None and not found.edits and not answered:
            return value
        kept = edited(messages, Request(found.edits))
        if answered:
            verdict, ending = found.verdicts[-1], _last(found, len(messages) - 1)
            if found.stopped is not None and found.stopped is not verdict:
                return self._instead(value, found)
            self._stop(verdict, ending)
            fallback = self.guard.policy.defaults.fallback
            kept[-1] = kept[-1] if ending == "redacted" else written(kept[-1], Choice(verdict, ending, fallback))
            kept[-1] = noted(kept[-1], [(verdict, ending)])
        elif found.stopped is not None:
            return self._instead(value, found)
        return like(value, kept)

    def _instead(self, value: Any, found: Admission[Any]) -> Any:
        """Return what stands in for a prompt, if anything may."""
        assert found.stopped is not None
        if self.on_block == "raise":
            raise Blocked(found.stopped)
        text = self.guard.policy.defaults.fallback
        reason = "content_filter" if found.ending == "blocked" else "stop"
        answer = AIMessage(text, response_metadata={"finish_reason": reason})
        return text if isinstance(value, str) else noted(answer, [(found.stopped, found.ending)])

    def _stop(self, verdict: Verdict, ending: Ending) -> None:
        if ending == "blocked" and self.on_block == "raise":
            raise Blocked(verdict)

    def _let_out(self, chunks: Iterator[Any]) -> Iterator[Any]:
        for first in chunks:
            if not self._streams(first):
                yield self._one(reduce(added, chunks, first))
                return
            outlet, form = Outlet(self.guard.policy, (), self.stream_mode, self._stop), _as(first)
            passed = pump(outlet.gate, self.guard.score, map(_gated, chain([first], chunks)))
            yield from filter(None, (form(outlet.message(out)) for out in passed))
            yield from filter(None, map(form, outlet.rest()))
            return  # what is left in `chunks` was blocked

    async def _alet_out(self, chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for first in chunks:
            if not self._streams(first):
                total = first
                async for chunk in chunks:
                    total = added(total, chunk)
                yield await self._aone(total)
                return
            outlet, form = Outlet(self.guard.policy, (), self.stream_mode, self._stop), _as(first)

            async def parts(first: Any = first) -> AsyncIterator[Gated[Any]]:
                yield _gated(first)
                async for chunk in chunks:
                    yield _gated(chunk)

            async for out in apump(outlet.gate, self.guard.ascore, parts()):
                if said := form(outlet.message(out)):
                    yield said
            for message in outlet.rest():
                if said := form(message):
                    yield said
            return

    def _streams(self, first: Any) -> bool:
        return isinstance(first, AIMessageChunk) or (isinstance(first, str) and self.stage == "response")


def _unless_stopped(found: Any) -> Any:
    if isinstance(found, Exception):
        raise found
    return found


def _last(found: Admission[Any], place: int) -> Ending:
    """Return what becomes of the message at the end."""
    if found.verdicts[-1].allowed:
        return "kept"
    if place in found.edits:
        return "redacted"
    return "blocked" if found.verdicts[-1].action == "block" else "fallback"


def _gated(chunk: Any) -> Gated[Any]:
    return gated(AIMessageChunk(content=chunk) if isinstance(chunk, str) else chunk)


def _as(first: Any) -> Callable[[BaseMessage], Any]:
    """Return a function that gives chunks the form of the first one."""
    return text_of if isinstance(first, str) else lambda message: message
