"""Those who are told of verdicts: audit logs, telemetry, and the package's logger. None of them changes one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from csrm_guard.messages import Message
from csrm_guard.policy import Policy
from csrm_guard.verdict import Verdict

__all__ = ["Observer", "Observers", "Watcher"]

logger = logging.getLogger("csrm_guard.guard")


class Observer(Protocol):
    """Told of every verdict: an audit log, telemetry. Errors that it raises are logged and change nothing."""

    def __call__(self, messages: tuple[Message, ...], verdict: Verdict, policy: Policy, /) -> None:
        """Take note of the verdict on the last message."""
        ...


@runtime_checkable
class Watcher(Protocol):
    """An observer that also wants to know when judging begins and ends."""

    def judging(self, count: int, /) -> AbstractContextManager[object]:
        """Return what is entered before so many messages are judged together, and left after their verdicts."""
        ...


class Observers:
    """A guard's observers.

    Args:
        policy: the guard's.
        observers: told of every verdict.
    """

    def __init__(self, policy: Policy, observers: Sequence[Observer]) -> None:
        self._policy, self._observers = policy, tuple(observers)
        self._watchers = tuple(observer for observer in self._observers if isinstance(observer, Watcher))

    @contextmanager
    def watched(self, count: int) -> Iterator[None]:
        """Tell that so many messages are being judged, for as long as they are."""
        entered: list[AbstractContextManager[object]] = []
        for watcher in self._watchers:
            try:
                manager = watcher.judging(count)
                manager.__enter__()
                entered.append(manager)
            except Exception:
                # A broken exporter must not decide what users may say; neither here nor below.
                logger.exception("observer %r failed", watcher)
        try:
            yield
        finally:
            for manager in reversed(entered):
                try:
                    manager.__exit__(None, None, None)
                except Exception:
                    logger.exception("observer %r failed", manager)

    def tell(self, messages: tuple[Message, ...], verdict: Verdict) -> None:
        """Tell all of a verdict."""
        _log(verdict, self._policy.name)
        for observer in self._observers:
            try:
                observer(messages, verdict, self._policy)
            except Exception:
                # A full disk must not decide what users may say; it is logged and the verdict stands.
                logger.exception("observer %r failed", observer)


def _log(verdict: Verdict, policy: str) -> None:
    """Log what did not pass, or would not have passed; never the text."""
    if verdict.degraded:
        word = "let pass" if verdict.allowed else "refused"
        logger.warning("policy %s: %s without a full judgement: %s", policy, word, verdict.error_type)
    elif not verdict.allowed or verdict.would not in (None, "observe"):
        logger.info("policy %s: %s", policy, verdict.summary())
