"""A thousand faults around guarded calls: nothing unjudged is shown, nothing hangs, nothing is left behind."""

import asyncio
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from csrm_guard.testing import ChatServer
from csrm_guard_adapters.langchain import GuardedChatModel
from csrm_guard_adapters.openai import guard_client
from tests.faulty import FALLBACK, Case, draw, guard_of

BATCH, BATCHES = 100, 10
# Far more than any call takes, even on a machine that does other work.
STALLED = 60
SILENCE = 0.1


class Form(BaseModel):
    """What no answer of the server fits."""

    number: int


class Left(Exception):
    """Raised by a reader amid a stream."""


@dataclass
class Seen:
    """What a reader has seen of a call.

    Attributes:
        objects: the vendor's, in order.
        error: that came instead of the rest.
        left: the reader went away before the end.
        stream: that was read.
    """

    objects: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    left: bool = False
    stream: Any = None


class Clients:
    """The bare clients of a batch, which all talk to one server."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.openai = stack.enter_context(OpenAI(api_key="none", base_url=url, max_retries=0))
        # The asynchronous ones are closed in the loop that they are used in.
        self.aopenai = AsyncOpenAI(api_key="none", base_url=url, max_retries=0)
        self.ahttp = httpx.AsyncClient()
        self.langchain = ChatOpenAI(
            model="m", api_key="none", base_url=url, max_retries=0,
            http_client=stack.enter_context(httpx.Client()), http_async_client=self.ahttp,
        )  # fmt: skip

    def call(self, case: Case, guard: Any) -> Callable[[], Any]:
        """Return what makes the guarded call of a case."""
        more: dict[str, Any] = {"model": case.name} | ({"timeout": SILENCE} if case.fault == "silent" else {})
        talk = [{"role": "user", "content": case.prompt}]
        if case.surface.startswith("langchain"):
            model = GuardedChatModel(
                model=self.langchain,
                guard=guard,
                on_block=case.on_block,
                stream_mode=case.mode,
                speculative=case.speculative,
            )
            streams, whole = (model.astream, model.ainvoke) if case.asynchronous else (model.stream, model.invoke)
            return lambda: (streams if "stream" in case.surface else whole)(talk, **more)
        client = guard_client(
            self.aopenai if case.asynchronous else self.openai, guard,
            on_block=case.on_block, speculative=case.speculative, stream=case.mode, every=20,
        )  # fmt: skip
        if case.surface == "chat parse":
            return lambda: client.chat.completions.parse(messages=talk, response_format=Form, **more)
        if case.surface == "responses parse":
            return lambda: client.responses.parse(input=talk, text_format=Form, **more)
        more |= {"stream": True} if "stream" in case.surface else {}
        if case.surface.startswith("chat"):
            return lambda: client.chat.completions.create(messages=talk, **more)
        return lambda: client.responses.create(input=talk, **more)


def read(case: Case, call: Callable[[], Any], seen: Seen) -> None:
    """Make a call and read its answer, or leave before its end."""
    found = call()
    if "stream" not in case.surface:
        seen.objects.append(found)
        return
    seen.stream = found
    for event in found:
        seen.objects.append(event)
        if case.fault == "reader leaves" and len(seen.objects) > case.at:
            seen.left = True
            if case.leaves == "raises":
                raise Left
            if case.leaves != "drops":
                found.close()
            return


async def aread(case: Case, call: Callable[[], Any], seen: Seen) -> None:
    """Do what `read` does in asyncio."""
    found = call()
    if not hasattr(found, "__aiter__"):
        found = await found
    if "stream" not in case.surface:
        seen.objects.append(found)
        return
    seen.stream = found
    async for event in found:
        seen.objects.append(event)
        if case.fault == "reader leaves" and len(seen.objects) > case.at and not isinstance(case.leaves, float):
            seen.left = True
            if case.leaves == "raises":
                raise Left
            if case.leaves == "closes":
                await (found.aclose() if hasattr(found, "aclose") else found.close())
            return


def run(case: Case, clients: Clients) -> None:
    guard, judged = guard_of(case)
    seen = Seen()
    try:
        read(case, clients.call(case, guard), seen)
    except Exception as exc:
        seen.error = exc
    nothing_unjudged(case, seen, judged())
    closed(case, seen)


async def arun(case: Case, clients: Clients) -> None:
    guard, judged = guard_of(case)
    seen = Seen()
    task = asyncio.ensure_future(aread(case, clients.call(case, guard), seen))
    if case.fault == "reader leaves" and isinstance(case.leaves, float):
        asyncio.get_running_loop().call_later(case.leaves, task.cancel)
    (done,), _ = await asyncio.wait([task])
    seen.error = asyncio.CancelledError() if done.cancelled() else done.exception()
    nothing_unjudged(case, seen, judged())
    closed(case, seen)


def closed(case: Case, seen: Seen) -> None:
    """Check that the vendor's response is closed with its stream, without help from the garbage collector."""
    response = getattr(seen.stream, "response", None)
    if hasattr(response, "is_closed") and not (seen.left and case.leaves in ("drops", "raises")):
        assert response.is_closed, f"{case}: the upstream is left open"


def nothing_unjudged(case: Case, seen: Seen, judged: Sequence[str]) -> None:
    """Check that what was seen was judged, and that what breaks a rule is not there, or was ended for it."""
    shown, error = repr(seen.objects), f"{seen.error!r} {seen.error}"
    # What is no answer at all a vendor's client may quote as it complains.
    assert case.fault == "malformed" or "bomb" not in error, f"{case}: the error tells it: {error}"
    if "stream" in case.surface and case.mode != "gated":
        ended = seen.error is not None or seen.left or "content_filter" in shown or FALLBACK in shown
        assert ended or "bomb" not in shown, f"{case}: not ended: {shown}"
        return
    assert "bomb" not in shown, f"{case}: seen: {shown}"
    for text in texts(seen.objects):
        for piece in filter(str.strip, text.replace(FALLBACK, "[removed]").split("[removed]")):
            assert any(piece.strip() in other for other in judged), f"{case}: {piece!r} was not judged, only {judged}"


def texts(objects: Sequence[Any]) -> list[str]:
    """Return the texts in a vendor's objects, those of a stream joined."""
    lanes: dict[Any, str] = {}
    for thing in objects:
        for key, text in _texts(thing):
            lanes[key] = lanes.get(key, "") + (text or "")
    return [text for text in lanes.values() if text.strip()]


def _texts(thing: Any) -> Iterator[tuple[Any, str | None]]:
    for choice in getattr(thing, "choices", None) or ():
        said = getattr(choice, "delta", None) or getattr(choice, "message", None)
        for name in ("content", "refusal", "reasoning_content"):
            yield name, getattr(said, name, None)
        for i, call in enumerate(getattr(said, "tool_calls", None) or ()):
            yield ("tool", getattr(call, "index", i)), call.function.arguments
    for i, item in enumerate(getattr(thing, "output", None) or ()):
        for k, part in enumerate(getattr(item, "content", None) or getattr(item, "summary", None) or ()):
            yield (i, k), getattr(part, "text", None) or getattr(part, "refusal", None)
        yield i, getattr(item, "arguments", None)
    if isinstance(getattr(thing, "delta", None), str):
        yield (thing.type, thing.output_index), thing.delta
    if isinstance(getattr(thing, "content", None), str):
        yield "content", thing.content


def watched(work: Callable[[Callable[[Case], None]], None]) -> None:
    """Run work in a thread and fail when it stands still; it tells of each case that it begins."""
    begun: list[tuple[Case | None, float]] = [(None, time.monotonic())]
    errors: list[BaseException] = []

    def target() -> None:
        try:
            work(lambda case: begun.append((case, time.monotonic())))
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        case, since = begun[-1]
        if thread.is_alive() and time.monotonic() - since > STALLED:
            stack = "".join(traceback.format_stack(sys._current_frames()[thread.ident or 0]))
            pytest.fail(f"{case} hangs:\n{stack}")
    if errors:
        raise errors[0]


def held() -> tuple[int, list[str]]:
    """Return how many sockets this process holds, and the threads that it waits for at its end."""
    gc.collect()
    waited_for = [thread.name for thread in threading.enumerate() if not thread.daemon]
    return len(psutil.Process().net_connections("inet")), waited_for


def nothing_left(before: tuple[int, list[str]]) -> None:
    """Check that sockets and threads go back to what they were; calls that were given up may take a moment."""
    ends = time.monotonic() + 20
    while held() > before and time.monotonic() < ends:
        time.sleep(0.02)
    assert held() <= before


@pytest.mark.parametrize("batch", range(BATCHES))
def test_nothing_unjudged_is_shown_nothing_hangs_and_nothing_is_left(batch: int, caplog: pytest.LogCaptureFixture):
    cases = {case.name: case for case in map(draw, range(batch * BATCH, (batch + 1) * BATCH))}
    before = held()

    def work(begins: Callable[[Case], None]) -> None:
        with ChatServer(lambda body: cases[body["model"]].reply) as server, ExitStack() as stack:
            clients = Clients(server.url, stack)
            for case in (case for case in cases.values() if not case.asynchronous):
                begins(case)
                run(case, clients)
            asyncio.run(awork(clients, begins))

    async def awork(clients: Clients, begins: Callable[[Case], None]) -> None:
        async with clients.aopenai, clients.ahttp:
            for case in (case for case in cases.values() if case.asynchronous):
                begins(case)
                await arun(case, clients)
            gc.collect()
            for _ in range(20):  # generators that nobody reads end in tasks of their own
                await asyncio.sleep(0.001)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    watched(work)
    nothing_left(before)
    assert not [record for record in caplog.records if record.name == "asyncio"]
