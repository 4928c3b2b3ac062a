"""Perform the steps of a flow, in the calling thread or in asyncio; no decision is taken here."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, NoReturn, TypeVar

from csrm_guard.flow import Cancel, Finish, Request, Start, Step
from csrm_guard.messages import Message
from csrm_guard.scheduler import Priority, prioritised
from csrm_guard.steps import Judge
from csrm_guard.stream import Ended, Gated, Passed, StreamGate
from csrm_guard.verdict import Verdict

__all__ = ["adrive", "apump", "drive", "pump"]

Reply = TypeVar("Reply")
Result = TypeVar("Result")
Chunk = TypeVar("Chunk")
Views = Sequence[tuple[Message, ...]]


def _uncalled(request: Request) -> NoReturn:
    raise AssertionError("this flow only judges")


async def _auncalled(request: Request) -> NoReturn:
    raise AssertionError("this flow only judges")


def drive(
    flow: Generator[Step, Any, Result],
    judge: Callable[[Views], list[Verdict]],
    call: Callable[[Request], Reply] = _uncalled,
    discard: Callable[[Reply], None] = lambda reply: None,
) -> Result:
    """Run a flow to its end in this thread.

    Args:
        flow: what to do.
        judge: returns a verdict per conversation, such as `Guard.score`.
        call: asks the model; a flow that only judges needs none.
        discard: takes the reply of a call that was given up, whenever it comes, to close it and count its tokens.

    Raises:
        Exception: whatever `judge` and `call` raise.
    """
    calls = _Calls(call, discard)
    try:
        step = next(flow)
        while True:
            step = flow.send(judge(step.views) if isinstance(step, Judge) else calls.perform(step))
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        flow.close()
        calls.give_up()


async def adrive(
    flow: Generator[Step, Any, Result],
    judge: Callable[[Views], Awaitable[list[Verdict]]],
    call: Callable[[Request], Awaitable[Reply]] = _auncalled,
    discard: Callable[[Reply], Awaitable[None]] | None = None,
) -> Result:
    """Run a flow to its end in asyncio; a call that is given up is cancelled, and so is it with the caller."""
    running: asyncio.Future[Reply] | None = None
    answer: Any = None
    try:
        step = next(flow)
        while True:
            match step:
                case Judge():
                    answer = await judge(step.views)
                case Start():
                    running, answer = asyncio.ensure_future(call(step.request)), None
                case Finish():
                    assert running is not None
                    answer, running = await running, None
                case Cancel():
                    await _cancel(running, discard)
                    running, answer = None, None
            step = flow.send(answer)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        flow.close()
        await _cancel(running, discard)


async def _cancel(running: asyncio.Future[Reply] | None, discard: Callable[[Reply], Awaitable[None]] | None) -> None:
    if running is None:
        return
    running.cancel()
    done, _ = await asyncio.wait([running])
    for task in done:
        if not task.cancelled() and task.exception() is None and discard is not None:
            await discard(task.result())


class _Calls(Generic[Reply]):
    """The calls of one flow: at once when finished, or in a thread of its own beside the judgements."""

    def __init__(self, call: Callable[[Request], Reply], discard: Callable[[Reply], None]) -> None:
        self._call, self._discard = call, discard
        self._request: Request | None = None
        self._running: Future[Reply] | None = None

    def perform(self, step: Step) -> Reply | None:
        if isinstance(step, Start):
            self._request = step.request
            self._running = self._in_thread(step.request) if step.beside else None
        elif isinstance(step, Finish):
            running, self._running = self._running, None
            if running is not None:
                return running.result()
            assert self._request is not None
            return self._call(self._request)
        else:
            self.give_up()
        return None

    def give_up(self) -> None:
        """Leave a running call to itself: a blocking request cannot be interrupted, its reply is discarded."""
        running, self._running = self._running, None
        if running is not None:
            running.add_done_callback(self._late)

    def _late(self, done: Future[Reply]) -> None:
        if done.exception() is None:
            self._discard(done.result())

    def _in_thread(self, request: Request) -> Future[Reply]:
        future: Future[Reply] = Future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                future.set_result(context.run(self._call, request))
            except BaseException as exc:
                future.set_exception(exc)

        # A daemon: a program that ends does not wait for an answer that nobody wants.
        threading.Thread(target=work, name="csrm-guard-call", daemon=True).start()
        return future


def pump(
    gate: StreamGate[Chunk], judge: Callable[[Views], list[Verdict]], upstream: Iterable[Gated[Chunk]]
) -> Iterator[Passed[Chunk] | Ended]:
    """Yield what a gate lets out of a stream; it returns early when nothing more can leave."""
    for gated in upstream:
        gate.push(gated)
        yield from _let_out(gate, judge)
        if gate.closed:
            return
    gate.finish()
    yield from _let_out(gate, judge)


async def apump(
    gate: StreamGate[Chunk],
    judge: Callable[[Views], Awaitable[list[Verdict]]],
    upstream: AsyncIterable[Gated[Chunk]],
) -> AsyncIterator[Passed[Chunk] | Ended]:
    """Do what `pump` does in asyncio."""
    async for gated in upstream:
        gate.push(gated)
        while views := gate.due():
            with prioritised(Priority.STREAM):
                verdicts = await judge(views)
            gate.settle(verdicts)
        gate.settle(())
        for passed in gate.ready():
            yield passed
        if gate.closed:
            return
    gate.finish()
    while views := gate.due():
        with prioritised(Priority.STREAM):
            verdicts = await judge(views)
        gate.settle(verdicts)
    gate.settle(())
    for passed in gate.ready():
        yield passed


def _let_out(gate: StreamGate[Chunk], judge: Callable[[Views], list[Verdict]]) -> Iterator[Passed[Chunk] | Ended]:
    while views := gate.due():
        with prioritised(Priority.STREAM):
            verdicts = judge(views)
        gate.settle(verdicts)
    gate.settle(())  # a choice without text ends without a judgement
    yield from gate.ready()
