"""Many callers, one model: a bounded queue that threads, asyncio tasks and servers share.

Each call of `score` is a job. Workers take a few requests of one job and then of the next, so that a long job does not
keep a short one waiting; jobs of a higher priority go first. A job that is cancelled, or whose deadline has passed,
leaves the queue and costs nothing more.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache

from csrm_guard.errors import DeadlineExceeded, Overloaded
from csrm_guard.model import Reading, RewardModel, ScoringRequest

__all__ = ["Priority", "Scheduler", "prioritised"]


class Priority(IntEnum):
    """What goes first: somebody waits for a stream's next sentence; nobody waits for a file."""

    STREAM = 0
    CALL = 1
    BULK = 2


_PRIORITY: ContextVar[Priority] = ContextVar("csrm_guard_priority", default=Priority.CALL)


@contextmanager
def prioritised(priority: Priority) -> Iterator[None]:
    """Give what is scored inside a priority; it follows into tasks and `asyncio.to_thread`."""
    token = _PRIORITY.set(priority)
    try:
        yield
    finally:
        _PRIORITY.reset(token)


@dataclass(slots=True)
class _Job:
    """Requests of one caller: `next` are handed out, `left` are not finished."""

    requests: Sequence[ScoringRequest]
    future: Future[list[Reading]]
    began: float
    ends: float | None
    readings: list[Reading | None]
    left: int
    next: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Requests [start, stop) of a job."""

    job: _Job
    start: int
    stop: int

    @property
    def requests(self) -> Sequence[ScoringRequest]:
        return self.job.requests[self.start : self.stop]


@dataclass(slots=True)
class _Queue:
    """What one process shares between its threads."""

    process: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    jobs: tuple[deque[_Job], ...] = field(default_factory=lambda: tuple(deque() for _ in Priority))
    waiting: int = 0
    busy: int = 0
    workers: list[threading.Thread] = field(default_factory=list)
    closed: bool = False


class Scheduler:
    """A reward model that bounds how much is scored, and waited for, at a time.

    Args:
        model: what scores; it is used alone when nothing else is at work.
        narrow: the same model with one thread a run, used while several workers are busy; None: `model`.
        workers: batches at a time; None: one per core.
        max_waiting: requests that may wait; more are refused with `Overloaded`.
        max_batch: requests of one job that a worker takes together.
        max_joint: requests of several jobs that a worker scores in one call. On a CPU that delays the first and speeds
            up none; on a GPU it fills the machine: as many as its memory allows.
        deadline: seconds from the call to the answer; None: no limit.
    """

    def __init__(
        self,
        model: RewardModel,
        narrow: RewardModel | None = None,
        *,
        workers: int | None = None,
        max_waiting: int = 4096,
        max_batch: int = 8,
        max_joint: int = 1,
        deadline: float | None = None,
    ) -> None:
        workers = workers or os.cpu_count() or 1
        if min(workers, max_waiting, max_batch, max_joint) < 1 or (deadline is not None and deadline <= 0):
            raise ValueError("workers, max_waiting, max_batch and max_joint must be at least 1, deadline over 0")
        if narrow is not None and narrow.id != model.id:
            raise ValueError(f"narrow is {narrow.id}, model is {model.id}: their scores would differ")
        self.id = model.id
        self._model, self._narrow = model, narrow or model
        self._workers, self._max_waiting, self._deadline = workers, max_waiting, deadline
        self._max_batch, self._max_joint = max_batch, max_joint
        self._lock = threading.Lock()
        self._queue = _Queue(os.getpid())

    @classmethod
    def default(cls) -> Scheduler:
        """Return the shipped model behind one queue per process.

        Raises:
            ArtifactError: the model is not there or was altered.
            RuntimeMissing: ONNX Runtime is not installed.
        """
        return _shared()

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return self._queue.waiting

    def within(self, deadline: float) -> _Within:
        """Return a view on the same queue with another deadline, in seconds."""
        if deadline <= 0:
            raise ValueError(f"deadline must be over 0, not {deadline}")
        return _Within(self, deadline)

    def threshold_at(self, fpr: float) -> float:
        """Return the model's threshold."""
        return self._model.threshold_at(fpr)

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return one reading per request, in order.

        Raises:
            Overloaded: too much is waiting already.
            DeadlineExceeded: the answer did not come in time.
            ScoringError: the model failed.
        """
        return self.score_within(requests, self._deadline)

    def score_within(self, requests: Sequence[ScoringRequest], deadline: float | None) -> list[Reading]:
        """Return what `score` returns, with another deadline."""
        future = self._submit(requests, deadline)
        try:
            return future.result(deadline)
        except FutureTimeout as exc:
            if future.done():  # the model's own TimeoutError, not ours
                raise
            raise DeadlineExceeded(f"no verdict within {deadline:g} s") from exc
        finally:
            self._forget(future)

    async def ascore(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return what `score` returns without a thread of the caller's; cancelling it frees its place."""
        return await self.ascore_within(requests, self._deadline)

    async def ascore_within(self, requests: Sequence[ScoringRequest], deadline: float | None) -> list[Reading]:
        """Return what `ascore` returns, with another deadline."""
        future = self._submit(requests, deadline)
        waiting = asyncio.wrap_future(future)
        try:
            done, _ = await asyncio.wait([waiting], timeout=deadline)
            if not done:
                raise DeadlineExceeded(f"no verdict within {deadline:g} s")
            return waiting.result()
        finally:
            # Else asyncio complains of an answer, late by a moment, that nobody collects.
            waiting.cancel()
            self._forget(future)

    def close(self) -> None:
        """Let the workers end once nothing waits; later calls start new ones."""
        with self._lock:
            queue, self._queue = self._queue, _Queue(os.getpid())
        with queue.changed:
            queue.closed = True
            queue.changed.notify_all()
        for thread in queue.workers if queue.process == os.getpid() else ():
            thread.join()

    def _submit(self, requests: Sequence[ScoringRequest], deadline: float | None) -> Future[list[Reading]]:
        future: Future[list[Reading]] = Future()
        if not requests:
            future.set_result([])
            return future
        now = time.perf_counter()
        ends = None if deadline is None else now + deadline
        job = _Job(requests, future, now, ends, [None] * len(requests), len(requests))
        queue = self._running()
        with queue.changed:
            # A job larger than the whole queue is taken when nothing waits: it could never be smaller.
            if queue.waiting and queue.waiting + len(requests) > self._max_waiting:
                raise Overloaded(
                    f"{queue.waiting} requests wait, at most {self._max_waiting} may; try again later, or raise "
                    "Scheduler(max_waiting=...)"
                )
            queue.waiting += len(requests)
            queue.jobs[_PRIORITY.get()].append(job)
            queue.changed.notify(min(len(requests), self._workers))
        return future

    def _forget(self, future: Future[list[Reading]]) -> None:
        """Take a job that nobody waits for out of the queue."""
        if future.done() and not future.cancelled():
            return
        future.cancel()
        queue = self._queue
        with queue.changed:
            for jobs in queue.jobs:
                for job in [job for job in jobs if job.future is future]:
                    jobs.remove(job)
                    queue.waiting -= len(job.requests) - job.next

    def _running(self) -> _Queue:
        with self._lock:
            # Threads do not survive a fork: a child starts its own, with an empty queue.
            if self._queue.process != os.getpid():
                self._queue = _Queue(os.getpid())
            queue = self._queue
            if not queue.workers:
                for n in range(self._workers):
                    thread = threading.Thread(target=self._work, args=(queue,), name=f"csrm-guard-{n}", daemon=True)
                    queue.workers.append(thread)
                    thread.start()
            return queue

    def _work(self, queue: _Queue) -> None:
        while True:
            with queue.changed:
                while not (part := self._take(queue)) and not queue.closed:
                    queue.changed.wait()
                if not part:
                    return
                parts = [part]
                while self._max_joint > sum(p.stop - p.start for p in parts) and (part := self._take(queue)):
                    parts.append(part)
                queue.busy += 1
                model = self._model if queue.busy == 1 and not queue.waiting else self._narrow
            try:
                self._do(model, parts)
            finally:
                with queue.changed:
                    queue.busy -= 1

    def _take(self, queue: _Queue) -> _Part | None:
        """Return requests of one job to do now; the job goes behind the others of its priority."""
        for jobs in queue.jobs:
            while jobs:
                job = jobs.popleft()
                left = len(job.requests) - job.next
                if job.future.cancelled():
                    queue.waiting -= left
                    continue
                start = job.next
                # Shared out between the workers, so that one job of many requests uses all cores.
                job.next += min(max(-(-left // self._workers), 1), self._max_batch)
                queue.waiting -= job.next - start
                if job.next < len(job.requests):
                    jobs.append(job)
                return _Part(job, start, job.next)
        return None

    def _do(self, model: RewardModel, parts: Sequence[_Part]) -> None:
        began = time.perf_counter()
        wanted = [part for part in parts if not part.job.future.done()]
        late = [part for part in wanted if part.job.ends is not None and began > part.job.ends]
        for part in late:
            _settle(part.job.future, DeadlineExceeded("the deadline passed before a worker was free"))
        wanted = [part for part in wanted if part not in late]
        if not wanted:
            return
        requests = [request for part in wanted for request in part.requests]
        try:
            readings = model.score(requests)
            if len(readings) != len(requests):
                raise ValueError(f"model {self.id} gave {len(readings)} answers to {len(requests)} questions")
        except BaseException as exc:
            if len(wanted) > 1:  # nobody is refused for what another one asked
                for part in wanted:
                    self._do(model, [part])
                return
            # Whatever a model raises belongs to the caller who waits; the worker goes on.
            _settle(wanted[0].job.future, exc)
            return
        found = iter(readings)
        for part in wanted:
            self._answer(part, [next(found) for _ in part.requests], began)

    def _answer(self, part: _Part, readings: Sequence[Reading], began: float) -> None:
        job = part.job
        job.readings[part.start : part.stop] = [replace(reading, wait=began - job.began) for reading in readings]
        with self._lock:
            job.left -= len(readings)
            last = not job.left
        if last:
            _settle(job.future, [reading for reading in job.readings if reading is not None])


@dataclass(frozen=True, slots=True)
class _Within:
    """A scheduler seen with another deadline."""

    scheduler: Scheduler
    deadline: float

    @property
    def id(self) -> str:
        return self.scheduler.id

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        return self.scheduler.score_within(requests, self.deadline)

    async def ascore(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        return await self.scheduler.ascore_within(requests, self.deadline)

    def threshold_at(self, fpr: float) -> float:
        return self.scheduler.threshold_at(fpr)


def _settle(future: Future[list[Reading]], outcome: list[Reading] | BaseException) -> None:
    with suppress(InvalidStateError):  # cancelled, or another part of the job has failed
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


@lru_cache(maxsize=1)
def _shared() -> Scheduler:
    # Imported here: a scheduler of one's own model needs no ONNX Runtime.
    from csrm_guard.artifact import DEFAULT_ARTIFACT
    from csrm_guard.onnx_model import OnnxRewardModel

    return Scheduler(OnnxRewardModel.default(), OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1))
