"""Guarded streams against the bare one: time to the first text, and to the end: python benchmarks/streaming.py.

A scripted server in a process of its own sends 7 characters every 5 ms over loopback; the shipped model judges in this
one. The guard is in shadow, so that no verdict of the model's ends a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import machine
import numpy as np
from openai import AsyncOpenAI, OpenAI
from questions import policy

from csrm_guard import Guard, OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.stream import Mode
from csrm_guard.testing import ChatServer, Reply
from csrm_guard_adapters.openai import guard_client

DELAY, PIECE = 0.005, 7
SENTENCES = [
    "Thank you for writing to us about your kettle.",
    "A leak at the spout mostly comes from a seal that has dried out.",
    "Empty the kettle, let it cool, and take the lid off.",
    "Under the lid is a grey ring: lift it out and rinse it.",
    "If it is cracked, we send you a new one.",
    "You need your order number, which begins with the letters KT.",
]
ANSWER = " ".join(SENTENCES * 3)
MODES: tuple[Mode, ...] = ("gated", "sampled", "end")


@dataclass(frozen=True, slots=True)
class Way:
    """How a stream is asked for; `mode` None: by the bare client."""

    name: str
    mode: Mode | None = None
    speculative: bool = False
    asynchronous: bool = False


WAYS = (
    Way("bare"),
    *(Way(f"{mode}{', speculative' if fast else ''}", mode, fast) for mode in MODES for fast in (False, True)),
    Way("bare, asyncio", asynchronous=True),
    Way("gated, asyncio", "gated", asynchronous=True),
    Way("gated, speculative, asyncio", "gated", True, True),
)


def serve(told: Connection) -> None:
    with ChatServer(Reply((ANSWER,), delay=DELAY, piece=PIECE)) as server:
        told.send(server.url)
        told.recv()


@contextmanager
def server() -> Iterator[str]:
    """Serve from a process of its own, so that it does not share this one's interpreter."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    process.start()
    try:
        yield here.recv()
    finally:
        here.send(None)
        process.join()


def timed(way: Way, url: str, guard: Guard, question: str) -> tuple[float, float]:
    """Return seconds to the first text, and to the end, of one stream."""
    asked = {"model": "m", "messages": [{"role": "user", "content": question}], "stream": True}
    if way.asynchronous:
        return asyncio.run(_atimed(way, url, guard, asked))
    with OpenAI(api_key="none", base_url=url) as bare:
        client = bare if way.mode is None else guard_client(bare, guard, stream=way.mode, speculative=way.speculative)
        began = time.perf_counter()
        first = 0.0
        for chunk in client.chat.completions.create(**asked):  # type: ignore[call-overload]
            if not first and chunk.choices[0].delta.content:
                first = time.perf_counter() - began
        return first, time.perf_counter() - began


async def _atimed(way: Way, url: str, guard: Guard, asked: dict[str, Any]) -> tuple[float, float]:
    async with AsyncOpenAI(api_key="none", base_url=url) as bare:
        client = bare if way.mode is None else guard_client(bare, guard, stream=way.mode, speculative=way.speculative)
        began = time.perf_counter()
        first = 0.0
        stream: AsyncIterator[Any] = await client.chat.completions.create(**asked)
        async for chunk in stream:
            if not first and chunk.choices[0].delta.content:
                first = time.perf_counter() - began
        return first, time.perf_counter() - began


def compared(url: str, guard: Guard, rounds: int) -> list[dict[str, object]]:
    """Return a row per way; all take turns, so that a slow phase hits all alike."""
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in WAYS}
    for n in range(-1, rounds):
        for way in WAYS if n % 2 else WAYS[::-1]:
            # Another conversation each time: what was kept of the last one is of no use.
            times = timed(way, url, guard, f"Case {n} of {way.name}: my kettle leaks at the spout. What can I do?")
            if n >= 0:  # the first round warms up
                found[way.name].append(times)
    rows = []
    for way in WAYS:
        own, bare = np.array(found[way.name]), np.array(found["bare, asyncio" if way.asynchronous else "bare"])
        added = np.median(own - bare, axis=0) * 1e3
        rows.append({
            "stream": way.name,
            "first text, ms (quartiles)": machine.spread(own[:, 0]),
            "added": f"{added[0]:+.1f}",
            "whole, ms (quartiles)": machine.spread(own[:, 1]),
            "added ": f"{added[1]:+.1f}",
        })  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rules", type=int, nargs="+", default=[1, 4], help="rules of the policies")
    args = parser.parse_args(argv)
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT)
    before = machine.probe()
    with server() as url:
        parts = [
            (f"## {count} rules", compared(url, Guard(policy(count), model, shadow=True), args.rounds))
            for count in args.rules
        ]
    after = machine.probe()
    machine.write(
        "streaming",
        "Guarded streams against the bare one",
        parts,
        [
            f"{len(ANSWER)} characters in {len(SENTENCES) * 3} sentences; {PIECE} characters every {DELAY * 1e3:g} ms, "
            f"over loopback; {args.rounds} rounds. `added`: median over rounds of the difference to the bare stream.",
            f"Probe before and after: int8 {before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
            f"Model {model.id}. {machine.machine(('onnxruntime', 'openai'))}.",
            "Command: `python benchmarks/streaming.py`.",
        ],
    )


if __name__ == "__main__":
    main()
