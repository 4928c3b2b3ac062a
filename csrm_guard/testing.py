"""Public fakes: models whose answers a test decides, and a chat server on loopback that says what it is told."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

from csrm_guard.errors import ScoringError
from csrm_guard.model import Reading, ScoringRequest
from csrm_guard.testing_bodies import (
    chat_chunks,
    chat_completion,
    completion,
    completion_chunks,
    response,
    response_events,
)

__all__ = ["ChatServer", "KeywordRewardModel", "Reply", "ScriptedRewardModel"]


class KeywordRewardModel:
    """Find every rule violated by messages that hold one of the keywords.

    Args:
        keywords: matched without regard to case.
        violated: q of a message with a keyword.
        kept: q of any other message.
    """

    id = "keyword"

    def __init__(self, *keywords: str, violated: float = 0.99, kept: float = 0.01) -> None:
        self._keywords = tuple(word.lower() for word in keywords)
        self._violated, self._kept = violated, kept

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return one window per request."""
        return [self._read(request) for request in requests]

    def threshold_at(self, fpr: float) -> float:
        """Return the middle of the two answers, whatever the rate."""
        return (self._violated + self._kept) / 2

    def _read(self, request: ScoringRequest) -> Reading:
        last = request.messages[-1]
        text = " ".join([last.content, *(call.arguments for call in last.tool_calls)]).lower()
        hit = any(word in text for word in self._keywords)
        q = np.full((1, len(request.rules)), self._violated if hit else self._kept)
        return Reading(q, ((0, len(last.content)),))


class ScriptedRewardModel:
    """Give answers in the order in which a test wrote them.

    Args:
        answers: per request q of every rule (a float), q by rule id (a dict; others get 0),
            or an exception to raise.
    """

    id = "scripted"

    def __init__(self, answers: Iterable[float | dict[str, float] | Exception]) -> None:
        self._answers = deque(answers)
        self.requests: list[ScoringRequest] = []

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return the next answers; record the requests in `requests`."""
        return [self._read(request) for request in requests]

    def threshold_at(self, fpr: float) -> float:
        """Return 1 - fpr, as if q of harmless messages were uniform."""
        return 1.0 - fpr

    def _read(self, request: ScoringRequest) -> Reading:
        self.requests.append(request)
        if not self._answers:
            raise ScoringError("the script has no answer left")
        answer = self._answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        table = answer if isinstance(answer, dict) else {rule.id: answer for rule in request.rules}
        q = np.array([[table.get(rule.id, 0.0) for rule in request.rules]])
        return Reading(q, ((0, len(request.messages[-1].content)),))


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a `ChatServer`.

    Attributes:
        texts: one per choice; in a response, one per part of its message.
        tool_calls: (name, arguments) of the first choice.
        refusal: of the first choice.
        reasoning: of the first choice.
        status: of the HTTP response; from 400 an error in OpenAI's form.
        delay: seconds before the answer, and between streamed pieces.
        piece: characters of a streamed piece.
        broken_after: pieces of a stream, or bytes of a whole answer, after which the connection breaks off; None: it
            does not.
        reset: the connection breaks off with an error, not as if the answer had ended; without `broken_after`, before
            any of it.
        body: sent as it stands, instead of all this; of a stream, its events.
        headers: of the HTTP response, besides the usual.
    """

    texts: tuple[str, ...] = ("",)
    tool_calls: tuple[tuple[str, str], ...] = ()
    refusal: str | None = None
    reasoning: str | None = None
    status: int = 200
    delay: float = 0.0
    piece: int = 7
    broken_after: int | None = None
    reset: bool = False
    body: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


class ChatServer:
    """An OpenAI-compatible server on loopback: real HTTP, scripted answers. Use it in a `with` block.

    It speaks chat completions, completions and responses; a response in the background is there when it is fetched.

    Args:
        replies: in the order of the calls; a string is a reply of one choice, a function is given the body of the
            request. The last one is repeated.

    Attributes:
        requests: bodies that were received.
        streamed: pieces that were sent of each stream.
        aborted: answers and streams whose reader went away before their end.
    """

    def __init__(self, *replies: Reply | str | Callable[[dict[str, Any]], Reply]) -> None:
        said = [Reply((reply,)) if isinstance(reply, str) else reply for reply in replies]
        self._replies: list[Reply | Callable[[dict[str, Any]], Reply]] = [*said] or [Reply()]
        self.requests: list[dict[str, Any]] = []
        self.streamed: list[int] = []
        self.aborted = 0
        self._lock = threading.Lock()
        self._background: dict[str, tuple[dict[str, Any], Reply]] = {}
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that the library asks for
                chat._answer(self)

            def do_GET(self) -> None:  # the name that the library asks for
                chat._fetch(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """The base URL for a client."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = self._read_body(handler)
        if body is not None:
            self._reply(handler, body)

    def _read_body(self, handler: BaseHTTPRequestHandler) -> dict[str, Any] | None:
        """Return a request's body; None if the caller gave up before all of it was here: it uses no reply."""
        length = int(handler.headers["Content-Length"])
        received = handler.rfile.read(length)
        if len(received) < length:
            with self._lock:
                self.aborted += 1
            return None
        found: dict[str, Any] = json.loads(received or b"{}")
        return found

    def _reply(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        path = handler.path.partition("?")[0]
        with self._lock:
            self.requests.append(body)
            stored = self._background.get(path.split("/")[-2]) if path.endswith("/cancel") else None
            found = self._replies.pop(0) if len(self._replies) > 1 and not stored else self._replies[0]
        if stored is not None:
            _send_json(handler, response(*stored, identity=path.split("/")[-2]))
            return
        reply = found if isinstance(found, Reply) else found(body)
        time.sleep(reply.delay)
        try:
            if reply.delay and _gone(handler):
                raise ConnectionResetError
            if reply.reset and reply.broken_after is None:
                _reset(handler)
            elif reply.status >= 400:
                error = {"error": {"message": "scripted", "type": "server_error", "code": None, "param": None}}
                _send_json(handler, error, reply.status, reply.headers)
            elif reply.body is not None:
                kind = "text/event-stream" if body.get("stream") else "application/json"
                _send(handler, reply.body.encode(), kind, 200, reply.headers)
            elif reply.broken_after is not None and not body.get("stream"):
                _send_part(handler, _whole(path, body, reply), reply)
            elif body.get("stream"):
                self._stream(handler, _events(path, body, reply), reply)
            elif body.get("background"):
                _send_json(handler, self._queued(body, reply))
            else:
                _send_json(handler, _whole(path, body, reply))
        except (BrokenPipeError, ConnectionResetError):
            with self._lock:
                self.aborted += 1

    def _queued(self, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
        with self._lock:
            identity = f"resp_{len(self._background)}"
            self._background[identity] = body, reply
        return {**response(body, reply, identity), "status": "queued", "output": [], "usage": None}

    def _fetch(self, handler: BaseHTTPRequestHandler) -> None:
        identity, _, query = handler.path.split("/")[-1].partition("?")
        if identity not in self._background:
            _send_json(handler, {"error": {"message": f"no response {identity}"}}, 404)
        elif "stream=true" in query:
            body, reply = self._background[identity]
            self._stream(handler, response_events(body, reply, identity), reply)
        else:
            _send_json(handler, response(*self._background[identity], identity=identity))

    def _stream(self, handler: BaseHTTPRequestHandler, events: list[dict[str, Any]], reply: Reply) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        with self._lock:
            self.streamed.append(0)
            place = len(self.streamed) - 1
        for event in events:
            if reply.broken_after is not None and self.streamed[place] >= reply.broken_after:
                if reply.reset:
                    _reset(handler)
                return
            named = f"event: {event['type']}\n" if "type" in event else ""
            handler.wfile.write(f"{named}data: {json.dumps(event)}\n\n".encode())
            handler.wfile.flush()
            self.streamed[place] += 1
            time.sleep(reply.delay)
        handler.wfile.write(b"data: [DONE]\n\n")


def _whole(path: str, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    if path.endswith("/responses"):
        return response(body, reply)
    return chat_completion(body, reply) if path.endswith("/chat/completions") else completion(body, reply)


def _events(path: str, body: dict[str, Any], reply: Reply) -> list[dict[str, Any]]:
    if path.endswith("/responses"):
        return response_events(body, reply)
    return chat_chunks(body, reply) if path.endswith("/chat/completions") else completion_chunks(body, reply)


def _gone(handler: BaseHTTPRequestHandler) -> bool:
    """Return whether the reader has closed the connection."""
    readable, _, _ = select.select([handler.connection], [], [], 0)
    return bool(readable) and handler.connection.recv(1, socket.MSG_PEEK) == b""


def _reset(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection so that its reader gets an error: a socket that lingers for no time sends a reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Closed by its number: the handler's own end would first tell the reader that all was sent.
    socket.close(handler.connection.detach())


def _send_part(handler: BaseHTTPRequestHandler, body: dict[str, Any], reply: Reply) -> None:
    """Send the first bytes of a whole answer, and break off."""
    data = json.dumps(body).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: reply.broken_after])
    if reply.reset:
        _reset(handler)


def _send_json(
    handler: BaseHTTPRequestHandler,
    body: dict[str, Any],
    status: int = 200,
    headers: tuple[tuple[str, str], ...] = (),
) -> None:
    _send(handler, json.dumps(body).encode(), "application/json", status, headers)


def _send(
    handler: BaseHTTPRequestHandler, data: bytes, kind: str, status: int, headers: tuple[tuple[str, str], ...]
) -> None:
    handler.send_response(status)
    for name, value in (("Content-Type", kind), ("Content-Length", str(len(data))), *headers):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)
