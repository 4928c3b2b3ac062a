"""One guarded endpoint: the vendor's own function is called between two judgements, with and without asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from openai import AsyncStream, Stream

from csrm_guard import Blocked, Guard, Message, MessageError, Verdict
from csrm_guard.drivers import adrive, apump, drive, pump
from csrm_guard.flow import Admission, Ending, Outcome, Request, Step, admit, converse
from csrm_guard.stream import Ended, Gated, Mode, StreamGate
from csrm_guard_adapters.openai_formats import Events, Format
from csrm_guard_adapters.openai_streams import aclose, close, covered, replayed, sealed, upstream_of
from csrm_guard_adapters.openai_unparsed import UNPARSED, Unparsed
from csrm_guard_adapters.verdicts import Verdicts, attach, summarise

__all__ = ["Endpoint", "OnBlock", "Options", "Wasted"]

OnBlock: TypeAlias = Literal["raise", "return"]
Views: TypeAlias = Sequence[tuple[Message, ...]]
Talk: TypeAlias = Generator[Step, Any, Outcome[Any]]


@dataclass(slots=True)
class Wasted:
    """Replies that were paid for and not used: of calls given up, and of answers asked for again."""

    replies: int = 0
    tokens: int = 0

    def add(self, reply: Any) -> None:
        """Count a reply."""
        self.replies += 1
        usage = getattr(reply, "usage", None)
        self.tokens += getattr(usage, "total_tokens", 0) or 0


@dataclass(frozen=True, slots=True)
class Options:
    """How a client is guarded.

    Attributes:
        guard: judges; None: nothing is judged.
        on_block: raise `Blocked`, or return the vendor's object with finish_reason `content_filter`.
        speculative: begin the call beside the judgement of the prompt.
        stream: when streamed text leaves.
        every: characters between judgements in stream mode `sampled`.
        wasted: counts replies that are not used.
    """

    guard: Guard | None
    on_block: OnBlock = "raise"
    speculative: bool = False
    stream: Mode = "gated"
    every: int = 400
    wasted: Wasted = field(default_factory=Wasted)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A vendor's function with its format."""

    inner: Callable[..., Any]
    form: Format
    options: Options

    def call(self, kwargs: dict[str, Any]) -> Any:
        """Make a guarded call in this thread."""
        guard, kwargs = self._begin(kwargs)
        if guard is None:
            return self.inner(**kwargs)
        messages = self.form.messages(kwargs)
        refusals = UNPARSED if self.form.parsed else ()

        def ask(request: Request) -> Any:
            try:
                reply = self.inner(**self.form.request(kwargs, request))
                if self.form.parsed:
                    _parsed(reply)
            except refusals as exc:
                return Unparsed(exc)
            return reply

        if kwargs.get("stream") is True:
            flow = admit(guard.policy, messages, speculative=self.options.speculative)
            admission = drive(flow, guard.score, ask, self._discard)
            return self._stream(guard, messages, admission, kwargs)
        talk = self._talk(guard, messages, kwargs)
        return self._answer(guard, drive(talk, guard.score, ask, self._discard), kwargs)

    async def acall(self, kwargs: dict[str, Any]) -> Any:
        """Make a guarded call in asyncio."""
        guard, kwargs = self._begin(kwargs)
        if guard is None:
            return await self.inner(**kwargs)
        messages = self.form.messages(kwargs)
        refusals = UNPARSED if self.form.parsed else ()

        async def ask(request: Request) -> Any:
            try:
                return await _body(await self.inner(**self.form.request(kwargs, request)))
            except refusals as exc:
                return Unparsed(exc)

        if kwargs.get("stream") is True:
            flow = admit(guard.policy, messages, speculative=self.options.speculative)
            admission = await adrive(flow, _judge(guard), ask, self._adiscard)
            return self._astream(guard, messages, admission, kwargs)
        talk = self._talk(guard, messages, kwargs)
        return self._answer(guard, await adrive(talk, _judge(guard), ask, self._adiscard), kwargs)

    def _begin(self, kwargs: dict[str, Any]) -> tuple[Guard | None, dict[str, Any]]:
        kwargs = dict(kwargs)
        guard = kwargs.pop("guard", self.options.guard)
        if guard is not None and not isinstance(guard, Guard):
            raise TypeError(f"guard: a Guard, or None to switch it off for this call, not {type(guard).__name__}")
        if guard is None:
            return None, kwargs
        hidden = self.form.judged & set(kwargs.get("extra_body") or ())
        if hidden:
            raise TypeError(f"extra_body: {', '.join(sorted(hidden))} would be sent unjudged; pass it as an argument")
        return guard, self.form.prepared(kwargs)

    def _talk(self, guard: Guard, messages: tuple[Message, ...], kwargs: dict[str, Any]) -> Talk:
        again, speculative = self.form.again(kwargs), self.options.speculative
        return converse(guard.policy, messages, self._read, speculative=speculative, again=again)

    def _read(self, reply: Any) -> list[Message]:
        return reply.read(self.form) if isinstance(reply, Unparsed) else self.form.read(_parsed(reply))

    def _answer(self, guard: Guard, outcome: Outcome[Any], kwargs: dict[str, Any]) -> Any:
        for reply in outcome.discarded:
            self.options.wasted.add(_parsed(reply))
        blocked = outcome.blocked
        if blocked is not None and self.options.on_block == "raise":
            raise Blocked(blocked)
        if outcome.reply is None and outcome.admission.stopped is None:
            raise MessageError("the server's answer is null: there is nothing to judge, and nothing to return")
        if outcome.reply is None:
            found = self.form.stopped(kwargs, outcome.admission.ending, guard.policy.defaults.fallback)
        elif isinstance(outcome.reply, Unparsed):
            found = self._unparsed(guard, outcome.reply, outcome, kwargs)
        elif _parsed(outcome.reply) is outcome.reply:
            found = self.form.write(outcome.reply, outcome.choices)
        else:
            # Its bytes cannot be changed: what may not be seen whole is not handed out.
            changed = next((c.verdict for c in outcome.choices if c.ending != "kept"), None)
            if changed is not None:
                raise Blocked(changed)
            found = outcome.reply.response if isinstance(outcome.reply, _Read) else outcome.reply
        attach(found, summarise(outcome))
        return found

    def _unparsed(self, guard: Guard, reply: Unparsed, outcome: Outcome[Any], kwargs: dict[str, Any]) -> Any:
        """Return what stands in for an answer that was not parsed, or raise the error if all of it may be seen."""
        ended = next((choice.ending for choice in outcome.choices if choice.ending != "kept"), None)
        if ended is None:
            raise reply.error
        ending: Ending = "blocked" if ended == "blocked" else "fallback"
        return self.form.stopped(kwargs, ending, guard.policy.defaults.fallback)

    def _stream(self, guard: Guard, messages: tuple[Message, ...], admission: Admission[Any], kwargs: Any) -> Any:
        if admission.stopped is not None:
            return self._instead(Stream, guard, admission, kwargs)
        stream, gate = _parsed(admission.reply), self._gate(guard, _sent(messages, admission), kwargs)
        found, upstream, form = covered(stream), upstream_of(stream), self.form.events(kwargs)

        def events() -> Iterator[Any]:
            try:
                for out in pump(gate, guard.score, map(form.gated, upstream)):
                    yield from form.out(out)
                    attach(found, _so_far(admission, gate))
            finally:
                close(stream)

        found._iterator = events()
        attach(found, _so_far(admission, gate))
        return found if admission.reply is stream else sealed(admission.reply)

    def _astream(self, guard: Guard, messages: tuple[Message, ...], admission: Admission[Any], kwargs: Any) -> Any:
        if admission.stopped is not None:
            return self._instead(AsyncStream, guard, admission, kwargs)
        stream, gate = _parsed(admission.reply), self._gate(guard, _sent(messages, admission), kwargs)
        found, upstream, form = covered(stream), upstream_of(stream), self.form.events(kwargs)

        async def events() -> AsyncIterator[Any]:
            try:
                async for out in apump(gate, _judge(guard), _read_by(form, upstream)):
                    for event in form.out(out):
                        yield event
                    attach(found, _so_far(admission, gate))
            finally:
                await aclose(stream)

        found._iterator = events()
        attach(found, _so_far(admission, gate))
        if admission.reply is stream:
            return found
        return sealed(admission.reply.response if isinstance(admission.reply, _Read) else admission.reply)

    def _gate(self, guard: Guard, sent: tuple[Message, ...], kwargs: dict[str, Any]) -> StreamGate[Any]:
        options = self.options
        return StreamGate(
            guard.policy, sent, mode=options.stream, every=options.every, choices=self.form.choices(kwargs)
        )

    def _instead(self, kind: type[Any], guard: Guard, admission: Admission[Any], kwargs: dict[str, Any]) -> Any:
        """Return the stream that stands in for a call that was not made."""
        assert admission.stopped is not None
        if admission.ending == "blocked" and self.options.on_block == "raise":
            raise Blocked(admission.stopped)
        ended = Ended(0, admission.stopped, admission.ending, guard.policy.defaults.fallback)
        found = replayed(kind, self.form.events(kwargs).out(ended))
        attach(found, Verdicts(prompt=admission.verdicts, endings=(admission.ending,)))
        return found

    def _discard(self, reply: Any) -> None:
        self.options.wasted.add(_parsed(reply))
        close(_parsed(reply))

    async def _adiscard(self, reply: Any) -> None:
        self.options.wasted.add(_parsed(reply))
        await aclose(_parsed(reply))


def _judge(guard: Guard) -> Callable[[Views], Awaitable[list[Verdict]]]:
    async def judge(views: Views) -> list[Verdict]:
        return await guard.ascore(views)

    return judge


async def _read_by(form: Events, upstream: Any) -> AsyncIterator[Gated[Any]]:
    async for event in upstream:
        yield form.gated(event)


def _sent(messages: tuple[Message, ...], admission: Admission[Any]) -> tuple[Message, ...]:
    return tuple(
        Message(m.role, admission.edits.get(i, m.content), m.tool_calls, m.unread) for i, m in enumerate(messages)
    )


def _so_far(admission: Admission[Any], gate: StreamGate[Any]) -> Verdicts:
    found = tuple(gate.verdicts[i] for i in sorted(gate.verdicts))
    return Verdicts(admission.verdicts, found, gate.endings)


def _parsed(reply: Any) -> Any:
    """Return what a raw response holds; anything else as it is."""
    return reply.parse() if hasattr(reply, "http_response") and callable(getattr(reply, "parse", None)) else reply


async def _body(reply: Any) -> Any:
    """Read an asynchronous raw response, so that `parse` answers at once."""
    if hasattr(reply, "http_response") and asyncio.iscoroutinefunction(getattr(reply, "parse", None)):
        return _Read(reply, await reply.parse())
    return reply


class _Read:
    """An asynchronous raw response whose body was read."""

    def __init__(self, response: Any, body: Any) -> None:
        self.response, self._body, self.http_response = response, body, response.http_response

    def parse(self) -> Any:
        return self._body
