"""Many callers at once, and what each of them was told. Standard library only: peers import it in their own Python."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from itertools import count

BLOCKED = "blocked"  # a text with this word is to be refused
Result = dict[str, float]


def text(caller: int, turn: int) -> tuple[str, bool]:
    """Return what a caller asks in a turn, and whether it is to be allowed: neighbours get unlike answers."""
    allowed = (caller + turn) % 2 == 0
    about = "a kettle" if allowed else f"{BLOCKED} goods"
    return f"Caller {caller} asks, for the {turn}th time, about {about}.", allowed


def tasks(check: Callable[[str], Awaitable[bool]], callers: int, seconds: float) -> Result:
    """Return figures of asyncio tasks that check one text after the other until the time is over."""
    return asyncio.run(atasks(check, callers, seconds))


async def atasks(check: Callable[[str], Awaitable[bool]], callers: int, seconds: float) -> Result:
    """The same within a running loop."""
    times: list[float] = []
    wrong: list[str] = []
    ends = time.perf_counter() + seconds

    async def one(caller: int) -> None:
        for turn in count():
            asked, allowed = text(caller, turn)
            began = time.perf_counter()
            if await check(asked) != allowed:
                wrong.append(asked)
            times.append(time.perf_counter() - began)
            if time.perf_counter() > ends:
                return

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(i) for i in range(callers)))
    return figures(times, len(wrong), time.perf_counter() - began, time.process_time() - cpu)


def threads(check: Callable[[str], bool], callers: int, seconds: float) -> Result:
    """Return figures of threads that check one text after the other until the time is over."""
    times: list[float] = []
    wrong: list[str] = []
    failed: list[BaseException] = []
    start = threading.Barrier(callers + 1)

    def one(caller: int) -> None:
        start.wait()
        ends = time.perf_counter() + seconds
        try:
            for turn in count():
                asked, allowed = text(caller, turn)
                began = time.perf_counter()
                if check(asked) != allowed:
                    wrong.append(asked)
                times.append(time.perf_counter() - began)
                if time.perf_counter() > ends:
                    return
        except BaseException as exc:
            failed.append(exc)

    crowd = [threading.Thread(target=one, args=(i,)) for i in range(callers)]
    for thread in crowd:
        thread.start()
    start.wait()
    began, cpu = time.perf_counter(), time.process_time()
    for thread in crowd:
        thread.join()
    if failed:
        raise failed[0]
    return figures(times, len(wrong), time.perf_counter() - began, time.process_time() - cpu)


def figures(times: list[float], wrong: int, took: float, cpu: float) -> Result:
    """Return checks a second, milliseconds that a share of the checks took at most, and of all cores for each check."""
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    found = {f"p{p}": cuts[p - 1] * 1e3 for p in (50, 95, 99)}
    return {
        "per_second": len(times) / took,
        **found,
        "cpu": cpu * 1e3 / len(times),
        "checks": len(times),
        "wrong": wrong,
    }
