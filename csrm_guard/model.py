"""The seam between policies and models: what a guard asks, what a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from csrm_guard.messages import Message
from csrm_guard.policy import Rule

__all__ = ["AsyncRewardModel", "Reading", "RewardModel", "ScoringRequest"]


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One question to a model.

    Attributes:
        messages: the conversation; the last message is judged.
        rules: R rules that forbid or require.
        permits: rules that permit; each excuses what it names from every rule.
    """

    messages: tuple[Message, ...]
    rules: tuple[Rule, ...]
    permits: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of a model.

    Attributes:
        q: calibrated P(the window violates the rule), float64 (W, R), in [0, 1].
        spans: per window the characters [start, end) of the judged text, length W.
        judged_tokens: tokens of the judged message, all read.
        context_tokens: tokens of the earlier turns.
        context_read: how many of these were read.
        tokenise: seconds spent on text.
        run: seconds spent in the model.
        wait: seconds spent in a queue before.
    """

    q: NDArray[np.float64]
    spans: tuple[tuple[int, int], ...]
    judged_tokens: int = 0
    context_tokens: int = 0
    context_read: int = 0
    tokenise: float = 0.0
    run: float = 0.0
    wait: float = 0.0


@runtime_checkable
class RewardModel(Protocol):
    """Anything that tells how likely rules are violated. Calls may come from several threads."""

    @property
    def id(self) -> str:
        """Identity of the model; equal ids give equal scores."""
        ...

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return one reading per request, in order.

        Raises:
            ScoringError: the model failed; a guard follows the rules' `on_error`.
        """
        ...

    def threshold_at(self, fpr: float) -> float:
        """Return the q that a share `fpr` of harmless (message, rule) pairs reaches.

        Raises:
            ScoringError: the model carries no such quantiles, or not that far out.
        """
        ...


@runtime_checkable
class AsyncRewardModel(RewardModel, Protocol):
    """A model that can be waited for without a thread."""

    async def ascore(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return what `score` returns."""
        ...
