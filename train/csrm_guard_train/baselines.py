"""A model that any user could train in seconds: TF-IDF and logistic regression, cross-fitted.

Beside the controls of `evaluation.py` (constant, policy-blind, shuffled policy) it says how far words alone go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline

from csrm_guard.rows import Row

__all__ = ["Reads", "cross_fitted", "fit_predict"]

Floats: TypeAlias = NDArray[np.float64]
# What the baseline sees: the conversation, or the conversation and its policy's rules.
Reads: TypeAlias = Literal["conversation", "conversation and rules"]


def fit_predict(train: Sequence[Row], test: Sequence[Row], *, reads: Reads = "conversation") -> Floats:
    """Return P(unsafe) of the test rows by a model fitted on the training rows.

    Training rows of one label alone give that label to every row.

    Raises:
        ValueError: a training row without a label.
    """
    unlabelled = [row.id for row in train if row.label is None]
    if unlabelled:
        raise ValueError(f"row {unlabelled[0]!r}: a training row needs `label`")
    labels = [bool(row.label) for row in train]
    if len(set(labels)) == 1:
        return np.full(len(test), float(labels[0]))
    model = _pipeline()
    model.fit([_text(row, reads) for row in train], labels)
    found: Floats = model.predict_proba([_text(row, reads) for row in test])[:, 1]
    return found


def cross_fitted(
    rows: Sequence[Row], groups: Sequence[str], *, folds: int = 5, reads: Reads = "conversation"
) -> Floats:
    """Return P(unsafe) of each row by a model that has seen no row of its group.

    Args:
        rows: labelled rows.
        groups: what must not be torn apart: a deployment, a conversation, a prompt.
        folds: at most as many as there are groups.
        reads: what the model sees.

    Raises:
        ValueError: a row without a label, or fewer than two groups.
    """
    if len(set(groups)) < 2:
        raise ValueError("cross-fitting needs at least two groups")
    p = np.empty(len(rows))
    for seen, unseen in GroupKFold(min(folds, len(set(groups)))).split(rows, groups=groups):
        p[unseen] = fit_predict([rows[i] for i in seen], [rows[i] for i in unseen], reads=reads)
    return p


def _pipeline() -> Pipeline:
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(vectors, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1_000))


def _text(row: Row, reads: Reads) -> str:
    text = "\n".join(message.content for message in row.messages)
    if reads == "conversation" or row.policy is None:
        return text
    # Rules get words of their own, so that a word in a rule is not the same word in a message.
    rules = " ".join(f"rule_{word}" for rule in row.policy.rules for word in rule.text.split())
    return f"{text}\n{rules}"
