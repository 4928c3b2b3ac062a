"""Choose the rules of a long policy that a conversation may concern, by BM25, and judge every turn by them.

The CSRM paper's way with DynaBench's long policies: the 20 rules that match best, in their original order,
and a conversation is unsafe if any assistant turn is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from csrm_guard.errors import RuntimeMissing
from csrm_guard.messages import Message
from csrm_guard.policy import Policy
from csrm_guard.rows import Row

__all__ = ["Selection", "select", "selected"]


@dataclass(frozen=True, slots=True)
class Selection:
    """A policy cut to the rules that are read.

    Attributes:
        policy: with the rules that are read, in their original order.
        read: ids of the forbidding and requiring rules that are read.
        unread: ids of those that are not; none of them can be found violated.
    """

    policy: Policy
    read: tuple[str, ...]
    unread: tuple[str, ...]


def select(policy: Policy, messages: Sequence[Message], *, most: int = 20) -> Selection:
    """Return the policy with the `most` rules that match the conversation's words best.

    Rules that permit are kept whole: they excuse, and are not asked about. A policy of at most `most` rules is
    left as it is. Equal scores keep the earlier rule, so that equal inputs give equal selections.

    Args:
        policy: of any length.
        messages: all turns are matched.
        most: how many rules are kept (paper: 20).

    Raises:
        ValueError: `most` is below 1.
        RuntimeMissing: bm25s is not installed.
    """
    if most < 1:
        raise ValueError(f"most={most}: at least one rule must be read")
    norms = [rule for rule in policy.rules if rule.stance != "permit"]
    if len(norms) <= most:
        return Selection(policy, tuple(rule.id for rule in norms), ())
    scores = _bm25([rule.text for rule in norms], "\n".join(message.content for message in messages))
    best = sorted(range(len(norms)), key=lambda i: (-scores[i], i))[:most]
    read = {norms[i].id for i in best}
    kept = tuple(rule for rule in policy.rules if rule.stance == "permit" or rule.id in read)
    return Selection(
        policy.model_copy(update={"rules": kept}),
        tuple(rule.id for rule in norms if rule.id in read),
        tuple(rule.id for rule in norms if rule.id not in read),
    )


def selected(row: Row, *, most: int = 20) -> Row:
    """Return a row that is judged by its selected rules, at every assistant turn with its history."""
    if row.policy is None:
        return row
    return replace(row, policy=select(row.policy, row.messages, most=most).policy, scope="any assistant turn")


def _bm25(rules: Sequence[str], text: str) -> list[float]:
    """Return each rule's BM25 score for the text; rules are the documents."""
    try:
        import bm25s
    except ImportError as exc:
        raise RuntimeMissing("selecting rules needs bm25s: pip install 'csrm-guard[train]'") from exc
    corpus = bm25s.tokenize(list(rules), stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    query = bm25s.tokenize([text], stopwords="en", return_ids=False, show_progress=False)[0]
    known = [word for word in query if word in corpus.vocab]
    if not known:
        return [0.0] * len(rules)
    return [float(score) for score in index.get_scores(known)]
