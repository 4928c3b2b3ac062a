import asyncio
import gc
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from csrm_guard import DeadlineExceeded, Guard, Message, Overloaded, Policy, Reading, Rule, ScoringRequest
from csrm_guard.scheduler import Priority, Scheduler, prioritised
from csrm_guard.testing import KeywordRewardModel

RULES = (Rule(id="a", text="No bombs."),)


class Echo:
    """Answers q = the number in the text; holds every call while `gate` is clear."""

    id = "echo"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[str] = []
        self.batches: list[int] = []
        self.running = self.most = 0
        self._lock = threading.Lock()

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.batches.append(len(requests))
            self.seen += [r.messages[-1].content for r in requests]
        self.gate.wait(10)
        with self._lock:
            self.running -= 1
        if any(r.messages[-1].content == "fail" for r in requests):
            raise RuntimeError("no")
        return [Reading(np.array([[float(r.messages[-1].content)]]), ((0, 1),)) for r in requests]

    def threshold_at(self, fpr: float) -> float:
        return 0.5


def ask(*values: object) -> list[ScoringRequest]:
    return [ScoringRequest((Message("user", str(value)),), RULES) for value in values]


def until(condition) -> None:
    ends = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.002)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def one(echo: Echo):
    scheduler = Scheduler(echo, workers=1, max_waiting=8, max_batch=2)
    yield scheduler
    echo.gate.set()
    scheduler.close()


def held(echo: Echo, scheduler: Scheduler, pool: ThreadPoolExecutor):
    """Occupy the only worker."""
    echo.gate.clear()
    first = pool.submit(scheduler.score, ask(0.5))
    until(lambda: echo.running == 1)
    return first


def test_every_caller_gets_its_own_answers(echo: Echo):
    scheduler = Scheduler(echo, workers=4)
    values = [[round(i / 1000 + k / 10, 3) for k in range(5)] for i in range(100)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda row: [r.q[0, 0] for r in scheduler.score(ask(*row))], values))
    scheduler.close()
    assert found == values
    assert echo.most <= 4


def test_tasks_get_their_own_answers_without_threads_of_their_own(echo: Echo):
    scheduler = Scheduler(echo, workers=2)
    before = threading.active_count()

    async def all_of_them() -> tuple[list[float], int]:
        readings = await asyncio.gather(*(scheduler.ascore(ask(i / 1000)) for i in range(300)))
        return [r[0].q[0, 0] for r in readings], threading.active_count()

    found, threads = asyncio.run(all_of_them())
    scheduler.close()
    assert found == [i / 1000 for i in range(300)]
    assert threads <= before + 2


def test_more_than_may_wait_is_refused_by_name(echo: Echo, one: Scheduler):
    with ThreadPoolExecutor(4) as pool:
        first = held(echo, one, pool)
        second = pool.submit(one.score, ask(*[0.1] * 8))
        until(lambda: one.waiting == 8)
        with pytest.raises(Overloaded, match=r"8 requests wait, at most 8 may; .*max_waiting"):
            one.score(ask(0.2))
        echo.gate.set()
        assert len(first.result(5) + second.result(5)) == 9


def test_a_guard_refuses_what_is_not_accepted(echo: Echo, one: Scheduler):
    guard = Guard(Policy(rules=RULES), one)
    with ThreadPoolExecutor(4) as pool:
        held(echo, one, pool)
        pool.submit(one.score, ask(*[0.1] * 8))
        until(lambda: one.waiting == 8)
        verdict = guard.check("0.0")
        echo.gate.set()
    assert not verdict.allowed
    assert verdict.degraded
    assert verdict.error is not None
    assert verdict.error.startswith("Overloaded: ")


def test_a_short_job_does_not_wait_for_a_long_one(echo: Echo, one: Scheduler):
    with ThreadPoolExecutor(4) as pool:
        held(echo, one, pool)
        long = pool.submit(one.score, ask(*[0.1] * 6))
        until(lambda: one.waiting == 6)
        short = pool.submit(one.score, ask(0.9))
        until(lambda: one.waiting == 7)
        echo.gate.set()
        long.result(5), short.result(5)
    assert echo.seen.index("0.9") == 3  # behind the worker's own and one batch of the long job


def test_a_streams_next_sentence_goes_before_calls_and_files(echo: Echo, one: Scheduler):
    def score(priority: Priority, value: float) -> None:
        with prioritised(priority):
            one.score(ask(value))

    with ThreadPoolExecutor(4) as pool:
        held(echo, one, pool)
        for n, priority in enumerate((Priority.BULK, Priority.CALL, Priority.STREAM)):
            pool.submit(score, priority, n / 10)
            until(lambda n=n: one.waiting == n + 1)
        echo.gate.set()
    assert echo.seen == ["0.5", "0.2", "0.1", "0.0"]


def test_a_failure_reaches_its_caller_only(echo: Echo, one: Scheduler):
    with pytest.raises(RuntimeError, match="no"):
        one.score(ask(0.1, "fail", 0.2, 0.3))
    assert one.score(ask(0.4))[0].q[0, 0] == 0.4


def test_a_deadline_bounds_the_wait_and_frees_the_place(echo: Echo, one: Scheduler):
    with ThreadPoolExecutor(2) as pool:
        held(echo, one, pool)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"no verdict within 0\.05 s"):
            one.within(0.05).score(ask(0.1))
        assert time.monotonic() - began < 2
        assert one.waiting == 0
        echo.gate.set()
    assert echo.seen == ["0.5"]


def test_a_guards_deadline_is_the_queues(echo: Echo, one: Scheduler):
    guard = Guard(Policy(rules=RULES), one, deadline=0.05)
    with ThreadPoolExecutor(2) as pool:
        held(echo, one, pool)
        sync, verdict = guard.check("0.0"), asyncio.run(guard.acheck("0.0"))
        echo.gate.set()
    assert [v.error for v in (sync, verdict)] == ["DeadlineExceeded: no verdict within 0.05 s"] * 2
    assert [v.allowed for v in (sync, verdict)] == [False, False]


def test_a_cancelled_task_frees_its_place(echo: Echo, one: Scheduler):
    async def cancelled() -> int:
        task = asyncio.create_task(one.ascore(ask(0.1, 0.2)))
        while one.waiting < 2:
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return one.waiting

    with ThreadPoolExecutor(2) as pool:
        held(echo, one, pool)
        assert asyncio.run(cancelled()) == 0
        echo.gate.set()
    assert echo.seen == ["0.5"]


def test_a_job_uses_all_workers(echo: Echo):
    scheduler = Scheduler(echo, workers=4, max_batch=8)
    scheduler.score(ask(*[0.1] * 16))
    scheduler.close()
    assert max(echo.batches) <= 4


def test_time_in_the_queue_is_told(echo: Echo, one: Scheduler):
    with ThreadPoolExecutor(2) as pool:
        held(echo, one, pool)
        second = pool.submit(Guard(Policy(rules=RULES), one).check, "0.1")
        until(lambda: one.waiting == 1)
        time.sleep(0.05)
        echo.gate.set()
        assert second.result(5).timings.wait >= 0.05


def test_nothing_asked_is_nothing_answered(one: Scheduler):
    assert one.score([]) == []


def test_it_works_again_after_it_was_closed(one: Scheduler):
    one.score(ask(0.1))
    one.close()
    assert one.score(ask(0.2))[0].q[0, 0] == 0.2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_its_own_workers(one: Scheduler):
    one.score(ask(0.1))
    child = os.fork()
    if not child:
        os._exit(0 if one.score(ask(0.25))[0].q[0, 0] == 0.25 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert one.score(ask(0.3))[0].q[0, 0] == 0.3


def test_a_narrow_model_of_other_weights_is_refused(echo: Echo):
    with pytest.raises(ValueError, match="their scores would differ"):
        Scheduler(echo, KeywordRewardModel())


def test_the_shipped_model_scores_alike_through_the_queue(default_model):
    policy = Policy.builtin("support-desk")
    texts = [f"Where is order number {i}?" for i in range(8)]
    direct = [Guard(policy, default_model).check(text).p_safe for text in texts]
    guard = Guard(policy, Scheduler.default())

    async def together() -> list[float]:
        return [v.p_safe for v in await asyncio.gather(*(guard.acheck(text) for text in texts))]

    assert asyncio.run(together()) == pytest.approx(direct, abs=1e-5)


def test_callers_share_a_call_where_that_is_wanted(echo: Echo):
    scheduler = Scheduler(echo, workers=1, max_joint=4)
    with ThreadPoolExecutor(8) as pool:
        first = held(echo, scheduler, pool)
        others = [pool.submit(scheduler.score, ask(i / 10)) for i in range(6)]
        until(lambda: scheduler.waiting == 6)
        echo.gate.set()
        assert [f.result(5)[0].q[0, 0] for f in others] == [i / 10 for i in range(6)]
        first.result(5)
    scheduler.close()
    assert echo.batches == [1, 4, 2]


def test_a_question_that_fails_takes_no_other_caller_with_it(echo: Echo):
    scheduler = Scheduler(echo, workers=1, max_joint=4)
    with ThreadPoolExecutor(8) as pool:
        held(echo, scheduler, pool)
        good = pool.submit(scheduler.score, ask(0.1))
        bad = pool.submit(scheduler.score, ask("fail"))
        until(lambda: scheduler.waiting == 2)
        echo.gate.set()
        assert good.result(5)[0].q[0, 0] == 0.1
        with pytest.raises(RuntimeError, match="no"):
            bad.result(5)
    scheduler.close()


def test_a_task_that_gave_up_leaves_no_unread_error(echo: Echo, one: Scheduler):
    complaints: list[object] = []

    async def give_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
        with pytest.raises(DeadlineExceeded):
            await one.ascore_within(ask("fail"), 0.05)
        echo.gate.set()
        await asyncio.sleep(0.2)
        gc.collect()
        await asyncio.sleep(0)

    echo.gate.clear()
    asyncio.run(give_up())
    assert complaints == []
