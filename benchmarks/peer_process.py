"""Peers that live in environments of their own: a process of theirs, spoken to in lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

SCRIPT = Path(__file__).with_name("peer_serve.py")


class PeerMissing(Exception):
    """A peer's environment is not there or does not work."""


class PeerProcess:
    """One peer, ready to be asked. Use it in a `with` block, or `close` it.

    Args:
        python: of its environment.
        kind: which one, see `peer_serve.py`.
        config: what it is made with.

    Raises:
        PeerMissing: it did not come up; the message says why.
    """

    def __init__(self, python: Path, kind: str, config: dict[str, Any] | None = None) -> None:
        command = [str(python), str(SCRIPT), kind]
        try:
            self._said = TemporaryFile("w+")
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
            )
        except OSError as exc:
            raise PeerMissing(f"{python}: {exc.strerror}") from exc
        self._kind = f"{kind} in {python}"
        self.version = str(self.ask(config or {})["version"])

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            PeerMissing: there was none; the message says what the peer said last.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as exc:
            self._said.seek(0)
            raise PeerMissing(f"{self._kind}: {(self._said.read().strip().splitlines() or ['it ended'])[-1]}") from exc
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def started(name: str, python: Path | None, kind: str, config: dict[str, Any] | None = None) -> PeerProcess | None:
    """Return a peer, or None after a line that says why it is left out."""
    if python is None:
        print(f"{name}: left out, no Python of its environment was given", file=sys.stderr)
        return None
    try:
        return PeerProcess(python, kind, config)
    except PeerMissing as exc:
        print(f"{name}: left out, {exc}", file=sys.stderr)
        return None
