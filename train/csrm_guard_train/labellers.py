"""Who says whether a conversation breaks a guideline: annotations, or a cross-fitted text classifier.

The labellers of Algorithm 1, `l(x.r; d)`; see `csrm_guard_train.strictness`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from csrm_guard.messages import Message

__all__ = [
    "AnnotatedLabeller", "Conversation", "CrossFittedLabeller", "Labeller", "Meanings", "StrictnessError",
    "TextClassifier", "TfidfClassifier", "fold_groups",
]  # fmt: skip

Booleans = NDArray[np.bool_]
# Text of a guideline -> the subcategories that it disallows. A text that is not in it means itself.
Meanings: TypeAlias = Mapping[str, frozenset[str]]


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
