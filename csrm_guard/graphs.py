"""The graphs that csrm-export writes, at work: a window and rules in, one logit per rule out.

`packed`: one sequence, a mask says who reads whom; every backbone, every execution provider.
`split`: conversation and rules as two streams; a prompt that is read again is not computed again.
`batched`: as split, with several windows a run: `csrm_guard.batched`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from csrm_guard.binding import Runner
from csrm_guard.encoding import Window
from csrm_guard.packing import CONVERSATION_OFFSET, collate, pack, split_rules
from csrm_guard.prefixes import Past, PrefixCache

__all__ = ["Graph", "PackedGraph", "SplitGraph", "alike"]

Floats = NDArray[np.float32]
Rules = Sequence[tuple[int, ...]]

_HIDDEN = np.float32(-1e4)
# A second run costs about as much as this many tokens.
_RUN_TOKENS = 64
_MAX_RULE_TOKENS = 2048
# Shorter prompts are computed again sooner than they are looked up and copied.
_MIN_PREFIX = 16


class Graph(Protocol):
    """A session with its way of being fed."""

    def read(self, window: Window, rules: Rules, *, shared: bool = False) -> Floats:
        """Return the logits (R,) of rules read against a window.

        Args:
            window: of a conversation.
            rules: token ids, at least one rule.
            shared: other windows with the same context follow.
        """
        ...

    def read_all(self, windows: Sequence[Window], rules: Rules) -> Floats:
        """Return the logits (W, R) of the same rules read against windows."""
        ...


class PackedGraph:
    """One sequence a run: int8 with ranges taken at run time moves a row's logit with its neighbours.

    Args:
        session: of a packed graph.
        sequence: tokens that it reads at once.
    """

    def __init__(self, session: Runner, sequence: int) -> None:
        self._session, self._sequence = session, sequence

    def read(self, window: Window, rules: Rules, *, shared: bool = False) -> Floats:
        """Return the logits (R,) of rules read against a window."""
        room = self._sequence - len(window.context) - len(window.judged)
        found = []
        for start, stop in split_rules(rules, room=room):
            batch = collate([pack(window, rules[start:stop])])
            feed = {"ids": batch.ids, "blocks": batch.blocks, "positions": batch.positions, "heads": batch.heads}
            found.append(self._session.run(["logits"], feed)[0][0])
        return np.concatenate(found)

    def read_all(self, windows: Sequence[Window], rules: Rules) -> Floats:
        """Return the logits (W, R) of the same rules read against windows."""
        return _one_by_one(self, windows, rules)


class SplitGraph:
    """Conversation and rules apart; keys and values of a prompt are kept for the next window that begins with it.

    Args:
        session: of a split graph.
        prefixes: where prompts are kept.
    """

    def __init__(self, session: Runner, prefixes: PrefixCache) -> None:
        self._session, self._prefixes = session, prefixes
        pasts = [i for i in session.get_inputs() if i.name.startswith("past_")]
        self._pasts = [i.name for i in pasts]
        self._outputs = [name.removeprefix("past_") for name in self._pasts]
        self._nothing: Past = tuple(np.zeros((i.shape[0], 0, i.shape[2]), np.float32) for i in pasts)

    def read(self, window: Window, rules: Rules, *, shared: bool = False) -> Floats:
        """Return the logits (R,) of rules read against a window."""
        long = len(window.context) >= _MIN_PREFIX
        past = self._prefixes.get(window.context) if long else None
        keep = long and past is None and (self._prefixes.wants(window.context) or shared)
        context, past = (window.context, self._nothing) if past is None else ((), past)
        logits = np.empty(len(rules), np.float32)
        groups = alike([len(rule) for rule in rules])
        for n, group in enumerate(groups):
            more = keep or n + 1 < len(groups)
            judged = window.judged if n == 0 else ()
            found, made = self._run(context if n == 0 else (), judged, past, [rules[i] for i in group], more)
            logits[group] = found
            if n == 0 and keep:
                self._prefixes.put(window.context, made)
            if n == 0 and len(groups) > 1:
                past = tuple(np.concatenate([a, b], axis=1) for a, b in zip(past, made, strict=True))
        return logits

    def read_all(self, windows: Sequence[Window], rules: Rules) -> Floats:
        """Return the logits (W, R) of the same rules read against windows.

        One after the other: on a CPU a token of a window alone costs what one among many does.
        """
        return _one_by_one(self, windows, rules)

    def _run(
        self, context: tuple[int, ...], judged: tuple[int, ...], past: Past, rules: Rules, more: bool
    ) -> tuple[Floats, Sequence[Floats]]:
        """Return logits, and the keys and values of the tokens read now, if more is to be done with them."""
        before, new = past[0].shape[1], len(context) + len(judged)
        mask = np.zeros((new, before + new), np.float32)
        mask[: len(context), before + len(context) :] = _HIDDEN
        length = max(map(len, rules))
        ids = np.zeros((len(rules), length), np.int64)
        rules_mask = np.full((len(rules), 1, length), _HIDDEN, np.float32)
        for row, rule in enumerate(rules):
            ids[row, : len(rule)] = rule
            rules_mask[row, 0, : len(rule)] = 0.0
        feed = {
            "ids": np.array([*context, *judged], np.int64),
            "positions": np.arange(before, before + new, dtype=np.int64) + CONVERSATION_OFFSET,
            "mask": mask,
            "rules": ids,
            "rules_mask": rules_mask,
            **dict(zip(self._pasts, past, strict=True)),
        }
        logits, *made = self._session.run(["logits", *self._outputs] if more else ["logits"], feed)
        return logits, made


def _one_by_one(graph: Graph, windows: Sequence[Window], rules: Rules) -> Floats:
    contexts = Counter(window.context for window in windows)
    return np.stack([graph.read(window, rules, shared=contexts[window.context] > 1) for window in windows])


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Return the places of rules in groups of like length, where that saves more padding than a run costs."""
    groups: list[list[int]] = []
    pending = [sorted(range(len(lengths)), key=lambda i: lengths[i])]
    while pending:
        group = pending.pop()
        longest = lengths[group[-1]]
        saved, cut = max(((n * (longest - lengths[group[n - 1]]), n) for n in range(1, len(group))), default=(0, 0))
        if saved <= _RUN_TOKENS and len(group) * longest > _MAX_RULE_TOKENS and len(group) > 1:
            saved, cut = _RUN_TOKENS + 1, max(_MAX_RULE_TOKENS // longest, 1)
        if saved > _RUN_TOKENS:
            pending += [group[cut:], group[:cut]]
        else:
            groups.append(group)
    return groups
