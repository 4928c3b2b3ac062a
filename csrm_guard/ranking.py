"""Best of n: candidates ordered by safety, or by safety and helpfulness, the allowed ones first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from csrm_guard.verdict import Verdict

__all__ = ["Candidate", "Constrained", "Objective", "Product", "Ranking", "Safest", "rank"]


class Objective(Protocol):
    """What makes one candidate better than another."""

    def score(self, verdict: Verdict, helpfulness: float | None) -> float:
        """Return the candidate's score; higher is better, -inf: not wanted at all."""
        ...


@dataclass(frozen=True, slots=True)
class Safest:
    """The reward R alone."""

    def score(self, verdict: Verdict, helpfulness: float | None) -> float:
        """Return R."""
        return verdict.reward


@dataclass(frozen=True, slots=True)
class Product:
    """sigma(a * R + b) * H, the paper's product of safety and helpfulness.

    Attributes:
        a: slope of the safety term.
        b: offset of the safety term.
    """

    a: float = 1.0
    b: float = 0.0

    def score(self, verdict: Verdict, helpfulness: float | None) -> float:
        """Return the product; H must not be negative, or less safe would count as better.

        Raises:
            ValueError: no helpfulness, or a negative one.
        """
        h = _given(helpfulness, "Product")
        if h < 0:
            raise ValueError(f"helpfulness {h}: Product needs H >= 0; map it with exp or a sigmoid, or use Constrained")
        return h / (1.0 + math.exp(-max(min(self.a * verdict.reward + self.b, 500.0), -500.0)))


@dataclass(frozen=True, slots=True)
class Constrained:
    """The largest H among the candidates with p_safe >= tau.

    Attributes:
        tau: smallest acceptable p_safe, in [0, 1].
    """

    tau: float = 0.5

    def score(self, verdict: Verdict, helpfulness: float | None) -> float:
        """Return H, or -inf below tau.

        Raises:
            ValueError: no helpfulness.
        """
        h = _given(helpfulness, "Constrained")
        return h if verdict.p_safe >= self.tau else -math.inf


@dataclass(frozen=True, slots=True)
class Candidate:
    """One judged candidate.

    Attributes:
        index: its place among those given.
        text: its text.
        verdict: on it.
        score: by the objective; higher is better.
        helpfulness: H, if it was asked for.
    """

    index: int
    text: str
    verdict: Verdict
    score: float
    helpfulness: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the policy allows it and the objective wants it."""
        return self.verdict.allowed and self.score > -math.inf


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, the best first.

    Attributes:
        candidates: those that passed, by score, then the others, by score.
        fallback: what stands in if none passed.
    """

    candidates: tuple[Candidate, ...]
    fallback: str = ""

    @property
    def best(self) -> Candidate | None:
        """The best candidate that passed; None: none did."""
        return self.candidates[0] if self.candidates and self.candidates[0].passed else None

    @property
    def text(self) -> str:
        """The best candidate's text, or the policy's fallback if none passed."""
        return self.best.text if self.best else self.fallback


def rank(
    texts: Sequence[str],
    verdicts: Sequence[Verdict],
    objective: Objective | None = None,
    *,
    helpfulness: Sequence[float] | None = None,
    fallback: str = "",
) -> Ranking:
    """Return judged candidates in order; ties keep the given order.

    Args:
        texts: n candidates.
        verdicts: one for each.
        objective: what is best; None: `Safest`.
        helpfulness: H of each, if the objective wants it.
        fallback: what stands in if none passed.

    Raises:
        ValueError: lengths differ, or H is missing or not a number.
    """
    goal = objective or Safest()
    scores_h = list(helpfulness) if helpfulness is not None else [None] * len(texts)
    if not len(texts) == len(verdicts) == len(scores_h):
        raise ValueError(f"{len(texts)} candidates, {len(verdicts)} verdicts, {len(scores_h)} helpfulness scores")
    found = [
        Candidate(i, text, verdict, goal.score(verdict, h), h)
        for i, (text, verdict, h) in enumerate(zip(texts, verdicts, scores_h, strict=True))
    ]
    return Ranking(tuple(sorted(found, key=lambda c: (not c.passed, -c.score, c.index))), fallback)


def _given(helpfulness: float | None, name: str) -> float:
    if helpfulness is None or math.isnan(helpfulness):
        raise ValueError(f"{name} needs helpfulness: a number for each candidate, not {helpfulness}")
    return float(helpfulness)
