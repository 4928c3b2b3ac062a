"""Severity augmentation (CSRM, Algorithm 1): guideline texts of which one is shown to be stricter.

Step 1, propose subcategories: `Source.subcategories` and its proposer. Step 2, coverage: `make_pool`, `cover`.
Step 3, order: `by_severity`. Step 4, describe: `describe`, `candidates`. Step 5, StrictnessTest: `dominance`.
`strictness` runs them all; `pair_groups` turns what is kept into training data. Models stand behind callables,
so that a language model can take the place of what is shipped: words by hand, and labels that people gave.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from csrm_guard_train.dominance import Candidate, StrictnessTest, strictness_test
from csrm_guard_train.labellers import (
    AnnotatedLabeller,
    Conversation,
    Labeller,
    Meanings,
    StrictnessError,
    fold_groups,
)
from csrm_guard_train.pairs import Labelled, StrictPair

__all__ = [
    "Coverage", "Describer", "Judged", "MostSevere", "Outcome", "Settings", "Source", "SubcategoryProposer",
    "authored_severity", "by_severity", "candidates", "cover", "describe", "make_pool", "measured_severity",
    "propose_annotated", "strictness",
]  # fmt: skip

# Returns the most severe of the subcategories that remain (step 3; the paper asks a language model).
MostSevere: TypeAlias = Callable[[Sequence[str]], str]
# (disallowed, allowed) -> one or more wordings of that guideline (step 4; the paper asks a language model).
Describer: TypeAlias = Callable[[Sequence[str], Sequence[str]], tuple[str, ...]]


class SubcategoryProposer(Protocol):
    """Step 2's Propose(p, x.r, S_p)."""

    def __call__(self, conversation: Conversation, subcategories: Sequence[str], /) -> str | None:
        """Return one more subcategory, under which the conversation falls, or None for no idea."""


# --- Step 2: the pool D_p and its coverage --------------------------------------------------------


def make_pool(
    conversations: Iterable[Conversation], cap: int = 200, seed: int = 0, *, independent: bool = False
) -> tuple[Conversation, ...]:
    """Return D_p: at most `cap` distinct conversations that fall under a subcategory, drawn by seed.

    Args:
        conversations: annotated ones of one category.
        cap: the paper's is 200 (BeaverTails) or 100 (WildGuardMix).
        seed: decides the draw.
        independent: take one conversation only of those that share a turn, such as the answers to one prompt.
            The test's bound supposes independent conversations; the paper does not say that it did this.
    """
    distinct = {" ".join(c.text.casefold().split()): c for c in conversations if c.shows}
    unsafe = sorted(distinct.values(), key=lambda c: c.id)
    random.Random(seed).shuffle(unsafe)
    if independent:
        unsafe = list(dict(zip(fold_groups(unsafe), unsafe, strict=True)).values())
    return tuple(unsafe[:cap])


@dataclass(frozen=True, slots=True)
class Coverage:
    """What step 2 ends with.

    Attributes:
        subcategories: S_p with what was added.
        proposed: what was added.
        covered: conversations on which some subcategory fires.
        pool: all conversations.
    """

    subcategories: tuple[str, ...]
    proposed: tuple[str, ...]
    covered: int
    pool: int

    @property
    def share(self) -> float:
        """The covered share of the pool; nan for an empty one."""
        return self.covered / self.pool if self.pool else math.nan


def cover(
    pool: Sequence[Conversation], subcategories: Sequence[str], labeller: Labeller, proposer: SubcategoryProposer
) -> Coverage:
    """Extend S_p by a proposal for each conversation of D_p on which no subcategory fires."""
    known = list(dict.fromkeys(subcategories))
    start, covered = len(known), 0
    for conversation in pool:
        fires = any(labeller(conversation, text) for text in known)
        if not fires:
            more = proposer(conversation, tuple(known))
            if more and more not in known:
                known.append(more)
                fires = labeller(conversation, more)
        covered += fires
    return Coverage(tuple(known), tuple(known[start:]), covered, len(pool))


def propose_annotated(conversation: Conversation, subcategories: Sequence[str]) -> str | None:
    """Return a subcategory that the annotators named and S_p lacks; the shipped proposer."""
    return min(conversation.shows - set(subcategories), default=None)


# --- Step 3: the order ----------------------------------------------------------------------------


def by_severity(subcategories: Sequence[str], most_severe: MostSevere) -> tuple[str, ...]:
    """Return the subcategories gravest first, by choosing the most severe that remains, again and again.

    Raises:
        StrictnessError: the choice is not among those that remain.
    """
    left, ordered = list(subcategories), []
    while left:
        pick = most_severe(tuple(left))
        if pick not in left:
            raise StrictnessError(f"{pick!r} was chosen as the most severe, but is not among {left}")
        left.remove(pick)
        ordered.append(pick)
    return tuple(ordered)


def authored_severity(levels: Mapping[str, float]) -> MostSevere:
    """Return the choice by an authored level; what has none (it was proposed later) counts as the mildest."""
    return lambda left: max(left, key=lambda text: levels.get(text, -math.inf))


def measured_severity(rated: Iterable[tuple[Conversation, float]]) -> MostSevere:
    """Return the choice by the mean severity of the rated conversations that show a subcategory."""
    found: dict[str, list[float]] = {}
    for conversation, severity in rated:
        for text in conversation.shows:
            found.setdefault(text, []).append(severity)
    return authored_severity({text: sum(values) / len(values) for text, values in found.items()})


# --- Step 4: the guideline texts ------------------------------------------------------------------

# Wording, and whether its items stand below each other.
_WORDINGS = (
    ("On the subject of {topic}, should not:{no}\nCan:{yes}", True),
    ("Not allowed: {no}. Allowed: {yes}. Subject: {topic}.", False),
    ("Permitted in this deployment ({topic}): {yes}. Prohibited: {no}.", False),
    ("This is where we draw the line on {topic}. Out of bounds: {no}. Within bounds: {yes}.", False),
    ("As to {topic}, these are fine here:{yes}\nThese are violations:{no}", True),
    ("Nobody may ask for or write any of this: {no}. The rest of {topic} is acceptable: {yes}.", False),
)


def describe(
    disallowed: Sequence[str], allowed: Sequence[str], *, category: str, seed: int = 0, count: int = 1
) -> tuple[str, ...]:
    """Return `count` different wordings of a guideline that names every item once; a seed repeats its draw.

    Raises:
        ValueError: a side is empty, an item stands on both, or there are fewer wordings than `count`.
    """
    if not disallowed or not allowed or set(disallowed) & set(allowed):
        raise ValueError("a guideline disallows something and allows something else; give both lists, disjoint")
    if not 1 <= count <= len(_WORDINGS):
        raise ValueError(f"count={count}: there are {len(_WORDINGS)} wordings")
    rng = random.Random(f"{seed}:{category}:{len(disallowed)}")
    topic = category.replace("_", " ")

    def worded(wording: str, below: bool) -> str:
        no, yes = (
            "".join(f"\n- {text.rstrip('.')}" for text in side) if below else "; ".join(t.rstrip(".") for t in side)
            for side in (disallowed, allowed)
        )
        return wording.format(topic=topic, no=no, yes=yes)

    return tuple(worded(*wording) for wording in rng.sample(_WORDINGS, count))


def candidates(name: str, ordered: Sequence[str], describer: Describer) -> tuple[Candidate, ...]:
    """Return a candidate for each 1 <= i < j <= |S| - 1: disallow the j gravest, or only the i gravest."""
    wordings = {cut: describer(ordered[:cut], ordered[cut:]) for cut in range(1, len(ordered))}
    return tuple(
        Candidate(
            f"{name}:{j}>{i}", wordings[j], wordings[i], frozenset(ordered[:j]), frozenset(ordered[:i])
        )
        for i in wordings
        for j in wordings
        if i < j
    )  # fmt: skip


# --- The whole of Algorithm 1 ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """One top-level category p and all that Algorithm 1 asks about it.

    Attributes:
        id: unique among sources.
        conversations: annotated ones; those that show nothing serve to fit classifiers.
        subcategories: S_p as first proposed.
        origin: data set and licence, kept with each pair.
    """

    id: str
    category: str
    conversations: tuple[Conversation, ...]
    subcategories: tuple[str, ...]
    most_severe: MostSevere
    describer: Describer
    origin: str
    proposer: SubcategoryProposer = propose_annotated


@dataclass(frozen=True, slots=True)
class Settings:
    """The pool's draw (see `make_pool`) and the test's two numbers; defaults as in the paper."""

    cap: int = 200
    seed: int = 0
    independent: bool = False
    alpha: float = 0.05
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate and its tests by the name of the labeller; all must pass."""

    candidate: Candidate
    tests: Mapping[str, StrictnessTest]

    @property
    def weakest(self) -> StrictnessTest:
        """The test with the lowest bound."""
        return min(self.tests.values(), key=lambda test: test.bound)

    @property
    def kept(self) -> bool:
        """Whether all labellers agree that the strict text is stricter."""
        return self.weakest.kept


@dataclass(frozen=True, slots=True)
class Outcome:
    """What Algorithm 1 found for one category.

    Attributes:
        clusters: conversations of the pool that share no turn; far fewer than the pool: less evidence than n says.
        order: S_p, gravest first.
        judged: every candidate with its tests.
        accuracy: per labeller, how often it agrees with annotations of the pool; nan: none known.
        pairs: what is kept, one per wording.
    """

    source: Source
    coverage: Coverage
    clusters: int
    order: tuple[str, ...]
    judged: tuple[Judged, ...]
    accuracy: Mapping[str, float]
    pairs: tuple[StrictPair, ...]


def strictness(
    source: Source,
    judges: Callable[[Source, Meanings], Mapping[str, Labeller]],
    settings: Settings | None = None,
    *,
    reader: Labeller | None = None,
) -> Outcome:
    """Run Algorithm 1 for one category.

    Args:
        source: the category.
        judges: returns the labellers that must all find a pair in order, once the texts are known; the
            first of them also labels the conversations of the pairs.
        settings: cap, seed, alpha and level.
        reader: says on which subcategories a conversation falls (step 2); default: its annotation.
    """
    settings = settings or Settings()
    pool = make_pool(source.conversations, settings.cap, settings.seed, independent=settings.independent)
    coverage = cover(pool, source.subcategories, reader or AnnotatedLabeller({}), source.proposer)
    order = by_severity(coverage.subcategories, source.most_severe)
    found = candidates(source.id, order, source.describer)
    meanings = {text: meaning for c in found for text, meaning in c.meanings.items()}
    labellers = judges(source, meanings)
    judged = tuple(_judge(candidate, pool, labellers, settings) for candidate in found)
    accuracy = {name: _accuracy(labeller, pool, meanings) for name, labeller in labellers.items()}
    origin = f"{source.origin}; judged by {' and '.join(labellers)}"
    first = next(iter(labellers.values()))
    pairs = tuple(pair for row in judged if row.kept for pair in _pairs(row, source, pool, first, origin))
    return Outcome(source, coverage, len(set(fold_groups(pool))), order, judged, accuracy, pairs)


def _judge(
    candidate: Candidate, pool: Sequence[Conversation], labellers: Mapping[str, Labeller], settings: Settings
) -> Judged:
    def test(labeller: Labeller) -> StrictnessTest:
        return strictness_test(candidate, pool, labeller, alpha=settings.alpha, level=settings.level)

    return Judged(candidate, {name: test(labeller) for name, labeller in labellers.items()})


def _accuracy(labeller: Labeller, pool: Sequence[Conversation], meanings: Meanings) -> float:
    known = [(c, text, said) for c in pool for text, m in meanings.items() if (said := c.says(m)) is not None]
    return sum(labeller(c, text) == said for c, text, said in known) / len(known) if known else math.nan


def _pairs(
    row: Judged, source: Source, pool: Sequence[Conversation], labeller: Labeller, origin: str
) -> Iterator[StrictPair]:
    candidate, test = row.candidate, row.weakest
    sides = candidate.strict_disallows, candidate.lenient_disallows
    for number, (strict, lenient) in enumerate(zip(candidate.strict, candidate.lenient, strict=True)):
        labels = tuple(
            Labelled(c.id, labeller(c, strict), labeller(c, lenient), all(c.says(side) is not None for side in sides))
            for c in pool
        )
        name = f"{candidate.id}#{number}"
        yield StrictPair(name, source.category, strict, lenient, labels, test.bound, test.k, test.n, origin)
