"""The StrictnessTest of Algorithm 1 (Definition 3.1): whether one guideline text is stricter than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import beta

from csrm_guard_train.labellers import (
    Conversation,
    Labeller,
    StrictnessError,
)

__all__ = ["Candidate", "StrictnessTest", "clopper_pearson_lower", "dominance", "fewest", "strictness_test"]


def clopper_pearson_lower(k: int, n: int, alpha: float = 0.05) -> float:
    """Return the one-sided lower bound BetaInv(alpha; k, n - k + 1) of a share k/n; 0 for k = 0.

    The true share lies below it in at most `alpha` of all independent samples. No correction is made for testing
    many pairs, as in the paper: among pairs that lie just at the level, about alpha of them pass by luck.

    Raises:
        ValueError: not 0 <= k <= n, or alpha outside (0, 1).
    """
    if not 0 <= k <= n:
        raise ValueError(f"k={k}, n={n}: 0 <= k <= n must hold")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: give a number between 0 and 1")
    return float(beta.ppf(alpha, k, n - k + 1)) if k else 0.0


def fewest(level: float = 0.95, alpha: float = 0.05) -> int:
    """Return the smallest n that can pass, without a miss: the bound is then alpha ** (1 / n)."""
    if not (0 < level < 1 and 0 < alpha < 1):
        raise ValueError(f"level={level}, alpha={alpha}: give numbers between 0 and 1")
    return math.floor(math.log(alpha) / math.log(level)) + 1


@dataclass(frozen=True, slots=True)
class StrictnessTest:
    """Whether a text is stricter than another.

    Attributes:
        k: conversations that are unsafe under both texts.
        n: conversations that are unsafe under the lenient one.
        bound: the lower bound of Pr[unsafe under the strict | unsafe under the lenient].
        level: what the bound must exceed.
        fewest: the n below which no result can pass.
    """

    k: int
    n: int
    bound: float
    level: float
    fewest: int

    @property
    def kept(self) -> bool:
        """Whether the pair may become supervision."""
        return self.bound > self.level

    @property
    def small(self) -> bool:
        """Whether there was too little data for any result to pass."""
        return self.n < self.fewest

    @property
    def reason(self) -> str:
        """Why the pair is dropped; empty if it is kept."""
        if self.kept:
            return ""
        if self.small:
            return f"too few unsafe under the lenient text: n={self.n}<{self.fewest} can never pass"
        return f"bound {self.bound:.4f} <= {self.level:.2f} (k={self.k}, n={self.n})"


def dominance(
    strict: Sequence[bool], lenient: Sequence[bool], *, alpha: float = 0.05, level: float = 0.95
) -> StrictnessTest:
    """Return the test of one text against another, from the labels of the same conversations under each.

    Raises:
        ValueError: the label lists differ in length.
    """
    both = [s for s, given in zip(strict, lenient, strict=True) if given]
    k, n = sum(both), len(both)
    return StrictnessTest(k, n, clopper_pearson_lower(k, n, alpha), level, fewest(level, alpha))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two guidelines of a category, the first of which is meant to be the stricter.

    Attributes:
        id: the source and how many of the gravest subcategories each text disallows.
        strict, lenient: wordings; all of one guideline mean the same.
        strict_disallows, lenient_disallows: subcategories; the second lies within the first.
    """

    id: str
    strict: tuple[str, ...]
    lenient: tuple[str, ...]
    strict_disallows: frozenset[str]
    lenient_disallows: frozenset[str]

    @property
    def meanings(self) -> dict[str, frozenset[str]]:
        """Each wording with what it disallows."""
        strict = dict.fromkeys(self.strict, self.strict_disallows)
        return strict | dict.fromkeys(self.lenient, self.lenient_disallows)


def strictness_test(
    candidate: Candidate,
    pool: Sequence[Conversation],
    labeller: Labeller,
    *,
    alpha: float = 0.05,
    level: float = 0.95,
) -> StrictnessTest:
    """Return the test over all wordings of a candidate at once.

    Each conversation counts once however many wordings there are: in n if any lenient wording calls it unsafe, in
    k if all strict wordings then do. Pooling wordings can thus make a pair fail, never let a small pool pass.

    Raises:
        StrictnessError: a conversation is given more than once, which would fake a larger sample.
    """
    if len({c.id for c in pool}) < len(pool):
        raise StrictnessError(f"{candidate.id}: a conversation stands in the pool twice; a sample counts each once")
    strict = [all(labeller(c, text) for text in candidate.strict) for c in pool]
    lenient = [any(labeller(c, text) for text in candidate.lenient) for c in pool]
    return dominance(strict, lenient, alpha=alpha, level=level)
