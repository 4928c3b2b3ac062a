"""The best of several answers: `BestOfN(ChatOpenAI(), Guard("bank"), 4)` in place of the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, cast

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config

from csrm_guard import Blocked, Guard, Message
from csrm_guard.flow import Ending
from csrm_guard.ranking import Candidate, Objective, Ranking
from csrm_guard.sampling import Helpfulness, abest_of_n, rounds
from csrm_guard_adapters.langchain_messages import CANDIDATES, as_message, as_messages, note, noted
from csrm_guard_adapters.langchain_values import read

__all__ = ["BestOfN"]

# What a call of the model takes over from the caller's; callbacks would see answers that are not chosen.
_KEPT = ("tags", "metadata", "configurable", "max_concurrency", "recursion_limit")


class BestOfN(Runnable[Any, AIMessage]):
    """Ask a model several times and return the best answer that the guard lets pass.

    It takes what a chat model takes and returns the model's own message. `response_metadata["csrm_guard"]` holds the
    verdict on it, `["csrm_guard_candidates"]` those on all of them, the best first; `usage_metadata` counts all calls.
    If none passes, the policy's fallback is the answer. The prompt is not judged: put a `GuardRunnable` before it.

    Args:
        model: answers; a chat model, or a chain that returns its message or a text.
        guard: judges.
        n: answers asked for, at most.
        objective: what is best; None: the largest reward.
        helpfulness: H, for objectives that want it.
        good_enough: stop once an answer that passed has this score by the objective.
        at_a_time: answers asked for before the next judgement; None: all, or one with `good_enough`.
        on_block: `return` the policy's fallback if none passes, or `raise` `csrm_guard.Blocked`.

    Raises:
        ValueError: n or at_a_time below 1.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        guard: Guard,
        n: int,
        *,
        objective: Objective | None = None,
        helpfulness: Helpfulness | None = None,
        good_enough: float | None = None,
        at_a_time: int | None = None,
        on_block: Literal["return", "raise"] = "return",
    ) -> None:
        if n < 1 or (at_a_time is not None and at_a_time < 1):
            raise ValueError(f"n and at_a_time must be at least 1, not {n} and {at_a_time}")
        self.model, self.guard, self.n, self.on_block = model, guard, n, on_block
        self._objective, self._helpfulness = objective, helpfulness
        self._good_enough, self._at_a_time = good_enough, at_a_time

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Return the best answer; the answers of one round are asked for side by side.

        Raises:
            Blocked: none passed, and `on_block` is `raise`.
            ValueError: the objective wants helpfulness, and there is none.
        """
        # LangChain passes the arguments that a function names
        return self._call_with_config(self._best, input, config, **kwargs)  # type: ignore[arg-type]

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Do what `invoke` does in asyncio."""
        return await self._acall_with_config(self._abest, input, config, **kwargs)  # type: ignore[arg-type]

    def _best(self, value: Any, config: RunnableConfig, **kwargs: Any) -> AIMessage:
        drawn: list[AIMessage] = []
        steps = rounds(
            self.guard,
            as_messages(read(value, "prompt")),
            self.n,
            self._objective,
            self._helpfulness,
            self._good_enough,
            self._at_a_time,
        )
        wanted = next(steps)
        try:
            while True:
                found = self.model.batch([value] * wanted, _alone(config), **kwargs)
                drawn += map(_answer, found)
                wanted = steps.send([as_message(message) for message in drawn[-wanted:]])
        except StopIteration as stop:
            return self._chosen(stop.value, drawn)

    async def _abest(self, value: Any, config: RunnableConfig, **kwargs: Any) -> AIMessage:
        drawn: list[AIMessage] = []

        async def draw() -> Message:
            place = len(drawn)
            drawn.append(AIMessage(""))  # the place in the order in which the answers will be judged
            drawn[place] = _answer(await self.model.ainvoke(value, _alone(config), **kwargs))
            return as_message(drawn[place])

        ranking = await abest_of_n(
            self.guard,
            as_messages(read(value, "prompt")),
            draw,
            self.n,
            objective=self._objective,
            helpfulness=self._helpfulness,
            good_enough=self._good_enough,
            at_a_time=self._at_a_time,
        )
        return self._chosen(ranking, drawn)

    def _chosen(self, ranking: Ranking, drawn: Sequence[AIMessage]) -> AIMessage:
        # Empty answers are not judged, and not counted in the ranking's places.
        judged = [message for message in drawn if not as_message(message).empty]
        best = ranking.best
        if best is None and ranking.candidates and self.on_block == "raise":
            raise Blocked(ranking.candidates[0].verdict)
        if best is not None:
            message = noted(judged[best.index], [(best.verdict, "kept")])
        else:
            reason = {"finish_reason": "content_filter"}
            message = AIMessage(ranking.fallback, response_metadata=reason)
        candidates = {CANDIDATES: [_noted(candidate, best) for candidate in ranking.candidates]}
        metadata = {**message.response_metadata, **candidates}
        usages = [message.usage_metadata for message in drawn if message.usage_metadata]
        usage = reduce(add_usage, usages) if usages else None
        found: AIMessage = message.model_copy(update={"response_metadata": metadata, "usage_metadata": usage})
        return found


def _alone(config: RunnableConfig) -> RunnableConfig:
    kept = {name: value for name, value in config.items() if name in _KEPT}
    return ensure_config(cast("RunnableConfig", {**kept, "callbacks": []}))


def _answer(found: Any) -> AIMessage:
    if isinstance(found, str):
        return AIMessage(found)
    if isinstance(found, AIMessage):
        return found
    kind = f"a {found.type} message" if isinstance(found, BaseMessage) else type(found).__name__
    raise TypeError(f"BestOfN ranks a chat model's messages or texts, not {kind}: put parsers after it")


def _noted(candidate: Candidate, best: Candidate | None) -> dict[str, Any]:
    """Return a candidate without its text: those that were not chosen may be what the policy forbids."""
    ending: Ending = "kept" if candidate.passed else "blocked"
    return {
        **note(candidate.verdict, ending),
        "chosen": candidate is best,
        "place": candidate.index,
        "score": candidate.score,
        "helpfulness": candidate.helpfulness,
    }
