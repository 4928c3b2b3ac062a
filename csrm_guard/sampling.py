"""Draw candidates from any model, judge them, stop early, return the ranking."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from csrm_guard.guard import Guard
from csrm_guard.messages import Message, MessagesLike, parse_messages
from csrm_guard.ranking import Objective, Ranking, rank
from csrm_guard.verdict import Verdict

__all__ = ["Answer", "Helpfulness", "abest_of_n", "best_of_n", "rounds"]

# A text, or a message with tool calls, which are judged as well.
Answer: TypeAlias = str | Message

# (conversation, candidates) -> one score per candidate; higher is more helpful.
Helpfulness: TypeAlias = Callable[[tuple[Message, ...], Sequence[str]], Sequence[float]]


@dataclass(slots=True)
class _Draws:
    """Candidates so far."""

    texts: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    helpfulness: list[float] = field(default_factory=list)


def best_of_n(
    guard: Guard,
    messages: MessagesLike,
    call: Callable[[], Answer],
    n: int,
    *,
    objective: Objective | None = None,
    helpfulness: Helpfulness | None = None,
    good_enough: float | None = None,
    at_a_time: int | None = None,
) -> Ranking:
    """Draw up to n answers and return them ranked; empty ones are not judged and not returned.

    Args:
        guard: judges.
        messages: the conversation that the candidates answer.
        call: returns one candidate.
        n: how many, at most.
        objective: what is best; None: the largest reward.
        helpfulness: H, for objectives that want it.
        good_enough: stop once a candidate that passed has this score by the objective.
        at_a_time: candidates drawn before the next judgement; None: all, or one with `good_enough`.

    Raises:
        ValueError: n or at_a_time below 1, or H is missing.
        Exception: whatever `call` raises.
    """
    steps = rounds(guard, messages, n, objective, helpfulness, good_enough, at_a_time)
    wanted = next(steps)
    try:
        while True:
            wanted = steps.send([call() for _ in range(wanted)])
    except StopIteration as stop:
        found: Ranking = stop.value
        return found


async def abest_of_n(
    guard: Guard,
    messages: MessagesLike,
    call: Callable[[], Awaitable[Answer]],
    n: int,
    *,
    objective: Objective | None = None,
    helpfulness: Helpfulness | None = None,
    good_enough: float | None = None,
    at_a_time: int | None = None,
) -> Ranking:
    """Do what `best_of_n` does; the candidates of one round are drawn concurrently."""
    steps = rounds(guard, messages, n, objective, helpfulness, good_enough, at_a_time)
    wanted = next(steps)
    while True:
        calls = [asyncio.ensure_future(call()) for _ in range(wanted)]
        try:
            answers = await asyncio.gather(*calls)
        finally:
            for task in calls:
                task.cancel()
        done, wanted = await asyncio.to_thread(_send, steps, answers)
        if done is not None:
            return done


def _send(steps: Generator[int, Sequence[Answer], Ranking], answers: Sequence[Answer]) -> tuple[Ranking | None, int]:
    # StopIteration cannot cross a future.
    try:
        return None, steps.send(answers)
    except StopIteration as stop:
        return stop.value, 0


def rounds(
    guard: Guard,
    messages: MessagesLike,
    n: int,
    objective: Objective | None = None,
    helpfulness: Helpfulness | None = None,
    good_enough: float | None = None,
    at_a_time: int | None = None,
) -> Generator[int, Sequence[Answer], Ranking]:
    """Yield how many candidates to draw, take them, return the ranking: both drivers' decisions."""
    if n < 1 or (at_a_time is not None and at_a_time < 1):
        raise ValueError(f"n and at_a_time must be at least 1, not {n} and {at_a_time}")
    prompt = parse_messages(messages)
    size = at_a_time or (n if good_enough is None else 1)
    draws, drawn = _Draws(), 0
    ranking = Ranking((), guard.policy.defaults.fallback)
    while drawn < n:
        answers = yield min(size, n - drawn)
        drawn += len(answers)
        said = [Message("assistant", answer) if isinstance(answer, str) else answer for answer in answers]
        said = [message for message in said if not message.empty]
        if not said:
            continue
        texts = [message.content for message in said]
        draws.texts += texts
        draws.verdicts += guard.score([(*prompt, message) for message in said])
        if helpfulness is not None:
            draws.helpfulness += [float(h) for h in helpfulness(prompt, texts)]
        ranking = rank(
            draws.texts,
            draws.verdicts,
            objective,
            helpfulness=draws.helpfulness if helpfulness is not None else None,
            fallback=guard.policy.defaults.fallback,
        )
        if good_enough is not None and ranking.best and ranking.best.score >= good_enough:
            break
    return ranking
