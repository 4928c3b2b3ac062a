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

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from csrm_guard.messages import Message
from csrm_guard_train.augment import Example, Group, LabelledRule, Order

__all__ = [
    "AnnotatedLabeller", "Candidate", "Conversation", "Coverage", "CrossFittedLabeller", "Describer", "Judged",
    "Labelled", "Labeller", "Meanings", "MostSevere", "Outcome", "Settings", "Source", "StrictPair",
    "StrictnessError", "StrictnessTest", "SubcategoryProposer", "TextClassifier", "TfidfClassifier",
    "authored_severity", "by_severity", "candidates", "clopper_pearson_lower", "cover", "describe", "dominance",
    "fewest", "fold_groups", "make_pool", "measured_severity", "pair_groups", "propose_annotated", "strictness",
    "strictness_test",
]  # fmt: skip

Booleans = NDArray[np.bool_]
# Text of a guideline -> the subcategories that it disallows. A text that is not in it means itself.
Meanings: TypeAlias = Mapping[str, frozenset[str]]
# Returns the most severe of the subcategories that remain (step 3; the paper asks a language model).
MostSevere: TypeAlias = Callable[[Sequence[str]], str]
# (disallowed, allowed) -> one or more wordings of that guideline (step 4; the paper asks a language model).
Describer: TypeAlias = Callable[[Sequence[str], Sequence[str]], tuple[str, ...]]


class StrictnessError(Exception):
    """The augmentation was asked for something that it cannot do soundly; the message says what."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation and what its annotators said of it, in the words of the subcategories.

    Attributes:
        shows: subcategories that it is known to fall under.
        lacks: subcategories that it is known not to fall under; all others are unknown.
    """

    id: str
    messages: tuple[Message, ...]
    shows: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()

    def says(self, disallowed: frozenset[str]) -> bool | None:
        """Return whether it breaks a guideline that disallows these subcategories; None: unknown."""
        if self.shows & disallowed:
            return True
        return False if disallowed <= self.lacks else None

    @property
    def text(self) -> str:
        """All turns, as a text classifier reads them."""
        return "\n".join(message.content for message in self.messages)


class Labeller(Protocol):
    """The paper's l(x.r; d): whether a conversation is unsafe under a guideline or subcategory text."""

    def __call__(self, conversation: Conversation, text: str, /) -> bool:
        """Return True if the conversation is unsafe under the text."""


class SubcategoryProposer(Protocol):
    """Step 2's Propose(p, x.r, S_p)."""

    def __call__(self, conversation: Conversation, subcategories: Sequence[str], /) -> str | None:
        """Return one more subcategory, under which the conversation falls, or None for no idea."""


# --- Step 5: the StrictnessTest (Definition 3.1) --------------------------------------------------


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


# --- Labellers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnnotatedLabeller:
    """Labels from annotations where they decide, else from another labeller, else False.

    Where annotations decide everything, what a lenient guideline forbids a strict one forbids too, by construction:
    the test then asks only whether there is enough data. Hence the second judge, `CrossFittedLabeller`.
    """

    meanings: Meanings
    otherwise: Labeller | None = None

    def __call__(self, conversation: Conversation, text: str, /) -> bool:
        """Return True if the conversation shows a subcategory that the text disallows."""
        said = conversation.says(self.meanings.get(text, frozenset({text})))
        if said is None and self.otherwise is not None:
            return self.otherwise(conversation, text)
        return bool(said)


class TextClassifier(Protocol):
    """What `CrossFittedLabeller` fits once per fold: N texts, G guidelines."""

    def fit(self, texts: Sequence[str], labels: Booleans) -> None:
        """Learn from labels (N, G)."""

    def predict(self, texts: Sequence[str]) -> Booleans:
        """Return labels (N, G)."""


class TfidfClassifier:
    """TF-IDF and one logistic regression per guideline, classes weighted alike."""

    def __init__(self) -> None:
        self._vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        self._models: list[LogisticRegression | bool] = []

    def fit(self, texts: Sequence[str], labels: Booleans) -> None:
        """Learn from labels (N, G); a guideline with one class only is answered with that class."""
        rows = self._vectors.fit_transform(texts)
        self._models = [
            LogisticRegression(C=10.0, class_weight="balanced", solver="liblinear").fit(rows, column)
            if 0 < column.sum() < len(column)
            else bool(column.all())
            for column in labels.T
        ]

    def predict(self, texts: Sequence[str]) -> Booleans:
        """Return labels (N, G)."""
        rows = self._vectors.transform(texts)
        columns = [
            np.full(len(texts), model) if isinstance(model, bool) else model.predict(rows) for model in self._models
        ]
        return np.stack(columns, axis=1).astype(bool)


def fold_groups(conversations: Sequence[Conversation]) -> list[int]:
    """Return a group per conversation; those that share any turn but a system message share a group."""
    parent = list(range(len(conversations)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, conversation in enumerate(conversations):
        for message in conversation.messages:
            if message.role not in ("system", "developer"):
                key = " ".join(message.content.casefold().split())
                parent[root(i)] = root(first.setdefault(key, i))
    return [root(i) for i in range(len(conversations))]


@dataclass(frozen=True, slots=True)
class CrossFittedLabeller:
    """Labels from a text classifier that has seen neither the conversation nor one that shares a turn with it.

    One classifier answers each guideline, not each subcategory: if a guideline's label were put together from its
    subcategories' labels, the strict one could not but follow from the lenient one, and the test would be idle.

    Attributes:
        meanings: what each text disallows. Wordings of one meaning get one label: the classifier reads
            conversations, so only a labeller that reads guidelines can find a badly worded one.
        labels: (meaning, conversation id) to the out-of-fold label.
    """

    meanings: Meanings
    labels: Mapping[tuple[frozenset[str], str], bool]

    @classmethod
    def fit(
        cls,
        conversations: Sequence[Conversation],
        meanings: Meanings,
        *,
        folds: int = 5,
        classifier: Callable[[], TextClassifier] = TfidfClassifier,
    ) -> CrossFittedLabeller:
        """Fit on annotated conversations; what is unknown counts as not shown while fitting.

        With fewer than two groups there is nothing to learn from, and nothing is called unsafe.

        Args:
            conversations: those of the pool, and preferably safe ones too.
            meanings: the guidelines to learn.
            folds: how many parts; fewer if there are fewer groups.
            classifier: makes a new classifier for each fold.
        """
        targets = sorted(set(meanings.values()), key=sorted)
        texts = [c.text for c in conversations]
        truth = np.array([[bool(c.shows & target) for target in targets] for c in conversations], dtype=bool)
        guesses = np.zeros_like(truth)  # (N, G)
        groups = fold_groups(conversations)
        parts = min(folds, len(set(groups)))
        if targets and parts > 1:
            for seen, unseen in GroupKFold(parts).split(texts, groups=groups):
                model = classifier()
                model.fit([texts[i] for i in seen], truth[seen])
                guesses[unseen] = model.predict([texts[i] for i in unseen])
        ids = [c.id for c in conversations]
        labels = {(t, c): bool(guesses[row, g]) for row, c in enumerate(ids) for g, t in enumerate(targets)}
        return cls(meanings, labels)

    def __call__(self, conversation: Conversation, text: str, /) -> bool:
        """Return the label from the fold that did not see the conversation.

        Raises:
            StrictnessError: the conversation or the text was not among those fitted.
        """
        try:
            return self.labels[self.meanings[text], conversation.id]
        except KeyError as exc:
            raise StrictnessError(f"{conversation.id}: no label was fitted for it under {text[:60]!r}") from exc


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
class Labelled:
    """A conversation's labels under a pair; `known`: both follow from its annotation."""

    conversation: str
    strict: bool
    lenient: bool
    known: bool


@dataclass(frozen=True, slots=True)
class StrictPair:
    """Two texts of which the first is stricter, and the conversations of the pool under both.

    Attributes:
        bound, k, n: of the test that passed by the least.
        origin: data set, licence and labellers.
    """

    id: str
    category: str
    strict_text: str
    lenient_text: str
    labels: tuple[Labelled, ...]
    bound: float
    k: int
    n: int
    origin: str


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


def pair_groups(
    pairs: Sequence[StrictPair], conversations: Iterable[Conversation], *, most: int | None = None, seed: int = 0
) -> list[Group]:
    """Return a group per pair and conversation: both texts as rules, the strict one violated more.

    A conversation whose labels contradict the order (unsafe only under the lenient text) is left out there.

    Args:
        pairs: what Algorithm 1 kept.
        conversations: at least those that the pairs name.
        most: at most so many groups per conversation, drawn by seed; default: all.
        seed: decides this and which rule stands first, so that place says nothing.

    Raises:
        StrictnessError: a pair names a conversation that is not given.
    """
    by_id = {c.id: c for c in conversations}
    rng = random.Random(seed)
    uses = [(pair, row) for pair in pairs for row in pair.labels if row.strict or not row.lenient]
    rng.shuffle(uses)
    counts: dict[str, int] = {}
    groups = []
    for pair, row in uses:
        if row.conversation not in by_id:
            raise StrictnessError(f"{pair.id}: conversation {row.conversation!r} is not among those given")
        counts[row.conversation] = counts.get(row.conversation, 0) + 1
        if most is None or counts[row.conversation] <= most:
            groups.append(_group(pair, row, by_id[row.conversation], strict_first=rng.random() < 0.5))
    return sorted(groups, key=lambda group: group.id)


def _group(pair: StrictPair, row: Labelled, conversation: Conversation, *, strict_first: bool) -> Group:
    # A label that a classifier filled in counts half of one that a person gave.
    weight = 1.0 if row.known else 0.5
    origin = f"{pair.id}/{conversation.id} ({pair.origin})"
    strict = LabelledRule(pair.strict_text, row.strict, f"{origin}/strict", (), weight)
    lenient = LabelledRule(pair.lenient_text, row.lenient, f"{origin}/lenient", (), weight)
    rules = (strict, lenient) if strict_first else (lenient, strict)
    order = Order((0, rules.index(strict)), (0, rules.index(lenient)))
    return Group(f"{pair.id}/{conversation.id}", (Example((conversation.messages,), rules),), (order,))
