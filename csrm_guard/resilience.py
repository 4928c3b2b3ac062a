"""A model that answers in time or says that it did not: deadline and circuit breaker around any model."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from csrm_guard.errors import DeadlineExceeded, ScoringError
from csrm_guard.model import Reading, RewardModel, ScoringRequest

__all__ = ["Resilient"]


class Resilient:
    """Wrap a model so that a slow or broken one costs a caller at most the deadline.

    Its errors reach the guard, whose rules' `on_error` decide; by default they refuse.

    Args:
        model: what scores.
        deadline: seconds after which a call is given up (it ends in the background); None: no limit.
        failures: so many failures in a row open the circuit: for `cooldown` seconds the model is not asked.
        cooldown: seconds; afterwards one call tries again.
        workers: calls at a time; more wait, and their waiting counts.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        deadline: float | None = None,
        failures: int = 5,
        cooldown: float = 30.0,
        workers: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if (deadline is not None and deadline <= 0) or failures < 1 or cooldown < 0 or workers < 1:
            raise ValueError("deadline must be over 0, failures and workers at least 1, cooldown at least 0")
        self.model = model
        self.id = model.id
        self._deadline, self._failures, self._cooldown, self._workers = deadline, failures, cooldown, workers
        self._clock = clock
        self._lock = threading.Lock()
        self._failed = 0
        self._closed_at = 0.0
        self._trying = False
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return the model's answers.

        Raises:
            DeadlineExceeded: they took too long.
            ScoringError: the circuit is open.
        """
        self._enter()
        try:
            found = self._ask(requests)
        except BaseException:
            self._leave(failed=True)
            raise
        self._leave(failed=False)
        return found

    def threshold_at(self, fpr: float) -> float:
        """Return the model's threshold."""
        return self.model.threshold_at(fpr)

    def _ask(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        if self._deadline is None:
            return self.model.score(requests)
        context = contextvars.copy_context()
        future: Future[list[Reading]] = self._executor().submit(context.run, self.model.score, requests)
        try:
            return future.result(self._deadline)
        except FutureTimeout as exc:
            if future.done():  # the model's own TimeoutError, not ours
                raise
            future.cancel()
            raise DeadlineExceeded(f"no verdict within {self._deadline:g} s") from exc

    def _enter(self) -> None:
        with self._lock:
            if self._failed < self._failures:
                return
            left = self._closed_at - self._clock()
            if left > 0 or self._trying:
                raise ScoringError(
                    f"model {self.id} failed {self._failed} times in a row; tried again in {max(left, 0):.1f} s"
                )
            self._trying = True

    def _leave(self, *, failed: bool) -> None:
        with self._lock:
            self._trying = False
            self._failed = self._failed + 1 if failed else 0
            if self._failed >= self._failures:
                self._closed_at = self._clock() + self._cooldown

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            # Threads do not survive a fork: a child makes its own.
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), ThreadPoolExecutor(self._workers, thread_name_prefix="csrm-guard")
            return self._pool[1]
