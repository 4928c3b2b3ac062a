"""A guard behind HTTP, as an application would put it there: python benchmarks/http_serve.py WAY RULES.

One process, one event loop (uvicorn), one route: the body is the text, the answer the verdict's reward and whether it
is allowed. The first line on standard output is the port.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import load
import uvicorn
from questions import policy

from csrm_guard import Guard, OnnxRewardModel, Policy, Rule, Scheduler
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.testing import KeywordRewardModel

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def guard_of(way: str, rules: int) -> Guard:
    """Return the guard of a row of the table: "engine", "batched" or "single"."""
    if way == "engine":
        one = Policy(rules=(Rule(id="word", text="Do not speak of it."),))
        return Guard(one, Scheduler(KeywordRewardModel(load.BLOCKED)))
    wide = OnnxRewardModel.load(DEFAULT_ARTIFACT)
    if way == "single":
        return Guard(policy(rules), wide)
    return Guard(policy(rules), Scheduler(wide, OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1)))


def application(guard: Guard) -> Callable[[dict[str, Any], Receive, Send], Awaitable[None]]:
    """Return the ASGI application."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event["body"], event.get("more_body", False)
        verdict = await guard.acheck(body.decode())
        answer = json.dumps({"allowed": verdict.allowed, "reward": verdict.reward}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def main() -> None:
    app = application(guard_of(sys.argv[1], int(sys.argv[2])))
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY).
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as door:
        door.bind(("127.0.0.1", 0))
        print(door.getsockname()[1], flush=True)
        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[door])


if __name__ == "__main__":
    main()
