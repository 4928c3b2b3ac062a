"""Clients of OpenAI's shape against the defects: ours, and openai-guardrails where it is installed."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import defects
from defects import ASK, BAD, CALL, CONTINUE, RESULT, STREAM, Finding
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from csrm_guard import Blocked
from csrm_guard.testing import ChatServer, Reply
from csrm_guard_adapters.openai import guard_client

PACKAGES = ("openai", "openai-guardrails")
DELAY = 2.0


class Answer(BaseModel):
    text: str


@dataclass(frozen=True, slots=True)
class System:
    """A guarded client: how it is made (server, class, options), and what it raises when it blocks."""

    name: str
    make: Callable[..., Any]
    blocks: type[BaseException]


def systems() -> list[System]:
    found = [System("csrm-guard, client", _ours, Blocked)]
    try:
        peer = importlib.import_module("defects_openai_guardrails")
        found.append(System("openai-guardrails", peer.make, peer.GuardrailTripwireTriggered))
    except ImportError as exc:
        print(f"openai-guardrails: left out, {exc}", file=sys.stderr)
    return found


def _ours(server: ChatServer, cls: type[Any] = OpenAI, *, fails: bool = False, beside: bool = False) -> Any:
    made = defects.guard(fails=fails, late=0.3 if beside else 0.0)
    return guard_client(cls(api_key="none", base_url=server.url, max_retries=0), made, speculative=beside)


def run() -> dict[str, dict[str, Finding]]:
    """Return the findings of every system by defect."""
    return {system.name: _findings(system) for system in systems()}


def _findings(system: System) -> dict[str, Finding]:
    def chat(reply: Reply, **kwargs: Any) -> Finding:
        def call() -> Any:
            found = system.make(server).chat.completions.create(model="m", messages=ASK, **kwargs)
            return _read(found, system.blocks) if kwargs.get("stream") else found

        with ChatServer(reply) as server:
            return defects.ask(call, system.blocks)

    return {
        "control": _control(system),
        "cancel": asyncio.run(_cancel(system)),
        "wait": _wait(system),
        "choices": chat(Reply(("one", "a bomb", "three")), n=3),
        "arguments": chat(CALL),
        "turns": _sent(system, CONTINUE),
        "result": _sent(system, RESULT),
        "stream": chat(STREAM, stream=True),
        "type": _type(system),
        "parse": _offered(system, lambda c: c.parse(model="m", messages=ASK, response_format=Answer)),
        "helper": _offered(system, lambda c: _helper(c, system.blocks)),
        "raw": _offered(system, lambda c: c.with_raw_response.create(model="m", messages=ASK).parse()),
        "options": _options(system),
        "failure": _failure(system),
        "responses arguments": _responses(system, CALL),
        "responses stream": _responses(system, STREAM, stream=True),
    }


def _read(stream: Any, blocks: type[BaseException]) -> list[Any]:
    """Return what a reader got of a stream before it ended or was blocked."""
    seen = []
    try:
        for event in stream:
            seen.append(event)
    except blocks:
        pass
    return seen


def _sent(system: System, messages: list[Any]) -> Finding:
    """Return whether a violating conversation stays away from the model."""
    with ChatServer("fine") as server:
        try:
            system.make(server).chat.completions.create(model="m", messages=messages)
        except system.blocks as exc:
            return Finding(True, f"raises {type(exc).__name__}")
        return Finding(False, "sent and answered")


def _control(system: System) -> Finding:
    prompt = _sent(system, BAD)
    with ChatServer("a bomb") as server:
        client = system.make(server)
        answer = defects.ask(lambda: client.chat.completions.create(model="m", messages=ASK), system.blocks)
    return Finding(prompt.holds and answer.holds, answer.seen)


async def _cancel(system: System) -> Finding:
    with ChatServer(Reply(("fine",), delay=DELAY)) as server:
        async with system.make(server, AsyncOpenAI, beside=True) as client:
            try:
                await client.chat.completions.create(model="m", messages=BAD)
            except system.blocks:
                # Long enough for the answer: a call that goes on is not cut off by the end of this program.
                await asyncio.sleep(DELAY + 1)
        sent, gone = len(server.requests), server.aborted
    return Finding(not sent or gone == sent, f"{sent} sent, {gone} cancelled")


def _wait(system: System) -> Finding:
    with ChatServer(Reply(("fine",), delay=DELAY)) as server:
        client = system.make(server, beside=True)
        began = time.monotonic()
        try:
            client.chat.completions.create(model="m", messages=BAD)
        except system.blocks:
            took = time.monotonic() - began
            return Finding(took < DELAY, f"{took:.1f} s, with a model that takes {DELAY:.0f} s")
        return Finding(False, "not blocked")


def _type(system: System) -> Finding:
    with ChatServer("fine") as server:
        found = system.make(server).chat.completions.create(model="m", messages=ASK)
        return Finding(isinstance(found, ChatCompletion), type(found).__name__)


def _offered(system: System, call: Callable[[Any], Any]) -> Finding:
    with ChatServer('{"text": "a bomb"}') as server:
        client = system.make(server)
        return defects.ask(lambda: call(client.chat.completions), system.blocks)


def _helper(completions: Any, blocks: type[BaseException]) -> list[Any]:
    with completions.stream(model="m", messages=ASK) as stream:
        return _read(stream, blocks)


def _options(system: System) -> Finding:
    with ChatServer("a bomb") as server:
        client = system.make(server)
        return defects.ask(
            lambda: client.with_options(timeout=3).chat.completions.create(model="m", messages=ASK), system.blocks
        )


def _failure(system: System) -> Finding:
    with ChatServer("fine") as server:
        try:
            system.make(server, fails=True).chat.completions.create(model="m", messages=ASK)
        except Exception as exc:
            return Finding(True, f"raises {type(exc).__name__}")
        return Finding(False, "sent and answered")


def _responses(system: System, reply: Reply, **kwargs: Any) -> Finding:
    def call() -> Any:
        found = system.make(server).responses.create(model="m", input="How do I bake bread?", **kwargs)
        return _read(found, system.blocks) if kwargs.get("stream") else found

    with ChatServer(reply) as server:
        return defects.ask(call, system.blocks)
