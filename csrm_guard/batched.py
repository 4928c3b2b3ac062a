"""The batched graph at work: windows of several conversations under the same rules in one run.

Shapes: see `csrm_guard_export.batched`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from csrm_guard.binding import Array, Runner
from csrm_guard.encoding import Window
from csrm_guard.packing import CONVERSATION_OFFSET
from csrm_guard.prefixes import Past, PrefixCache

__all__ = ["BatchedGraph", "batches"]

Floats = NDArray[np.float32]
Rules: TypeAlias = Sequence[tuple[int, ...]]

_HIDDEN = -1e4
_MAX_TOKENS = 8192
# Shorter prompts are computed again sooner than they are looked up and copied.
_MIN_PREFIX = 16
# Of sizes, where graphs are captured per shape.
_STEP = 32


@dataclass(frozen=True, slots=True)
class _Talk:
    """A window's tokens in one run: those of the context that are read now, then the judged ones."""

    context: tuple[int, ...]
    judged: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.context, *self.judged)


class BatchedGraph:
    """Several windows a run; keys and values of a prompt that windows share are computed once.

    Args:
        session: of a batched graph.
        prefixes: where prompts are kept.
        rounded: sizes are rounded up, so that few shapes occur.
    """

    def __init__(self, session: Runner, prefixes: PrefixCache, *, rounded: bool = False) -> None:
        self._session, self._prefixes, self._step = session, prefixes, _STEP if rounded else 1
        pasts = [i for i in session.get_inputs() if i.name.startswith("past_")]
        self._pasts = [i.name for i in pasts]
        self._outputs = [name.removeprefix("past_") for name in self._pasts]
        self._kind = np.float16 if pasts[0].type == "tensor(float16)" else np.float32
        self._nothing: Past = tuple(np.zeros((i.shape[1], 0, i.shape[3]), self._kind) for i in pasts)

    def read(self, window: Window, rules: Rules, *, shared: bool = False) -> Floats:
        """Return the logits (R,) of rules read against a window."""
        found: Floats = self._of_context(window.context, [window], rules, keep=shared)[0]
        return found

    def read_all(self, windows: Sequence[Window], rules: Rules) -> Floats:
        """Return the logits (W, R) of the same rules read against windows."""
        logits = np.empty((len(windows), len(rules)), np.float32)
        counts = Counter(window.context for window in windows)
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for i, window in enumerate(windows):
            context = window.context
            long = len(context) >= _MIN_PREFIX
            again = long and (counts[context] > 1 or self._prefixes.wants(context))
            groups.setdefault(context if again else None, []).append(i)
        for prompt, places in groups.items():
            if prompt is None:
                talks = [_Talk(windows[i].context, windows[i].judged) for i in places]
                logits[places] = self._batched(talks, rules, self._nothing)
            else:
                logits[places] = self._of_context(prompt, [windows[i] for i in places], rules, keep=True)
        return logits

    def _of_context(self, context: tuple[int, ...], windows: Sequence[Window], rules: Rules, *, keep: bool) -> Floats:
        """Return the logits (W, R) against windows with one context."""
        long = len(context) >= _MIN_PREFIX
        past = self._prefixes.get(context) if long else None
        if past is not None:
            return self._batched([_Talk((), w.judged) for w in windows], rules, past)
        if not (long and (self._prefixes.wants(context) or keep)):
            return self._batched([_Talk(context, w.judged) for w in windows], rules, self._nothing)
        first, made = self._run([_Talk(context, windows[0].judged)], rules, self._nothing, more=True)
        past = tuple(np.ascontiguousarray(a[0, :, : len(context)]) for a in made)
        self._prefixes.put(context, past)
        if len(windows) == 1:
            return first
        return np.concatenate([first, self._batched([_Talk((), w.judged) for w in windows[1:]], rules, past)])

    def _batched(self, talks: Sequence[_Talk], rules: Rules, past: Past) -> Floats:
        logits = np.empty((len(talks), len(rules)), np.float32)
        for some in batches([len(talk.ids) for talk in talks], sum(map(len, rules)), _MAX_TOKENS):
            logits[some] = self._run([talks[i] for i in some], rules, past)[0]
        return logits

    def _run(
        self, talks: Sequence[_Talk], rules: Rules, past: Past, *, more: bool = False
    ) -> tuple[Floats, Sequence[Array]]:
        """Return logits (W, R) and, if more is to be done with them, keys and values of the conversations' tokens."""
        feed = self._laid_out(talks, rules, past[0].shape[1])
        feed |= {name: array[None] for name, array in zip(self._pasts, past, strict=True)}
        found, *made = self._session.run(["logits", *self._outputs] if more else ["logits"], feed)
        return found[: len(talks)], made

    def _laid_out(self, talks: Sequence[_Talk], rules: Rules, before: int) -> dict[str, Array]:
        tokens = [len(talk.ids) for talk in talks]
        windows = len(talks) if self._step == 1 else 1 << (len(talks) - 1).bit_length()
        longest, length = self._up(max(tokens)), self._up(max(map(len, rules)))
        own = np.concatenate([np.asarray(rule, np.int64) for rule in rules])
        places = np.concatenate([np.arange(len(rule)) for rule in rules])
        total = self._up(sum(tokens) + len(talks) * len(own))
        ids, positions, kinds, order = (np.zeros(total, np.int64) for _ in range(4))
        talk = np.full((windows, longest), total, np.int64)
        block = np.full((windows, len(rules), length), total, np.int64)
        mask = np.zeros((windows, 1, longest, longest), self._kind)
        at = 0
        for row, (one, count) in enumerate(zip(talks, tokens, strict=True)):
            now = np.arange(at, at + count)
            ids[now], positions[now], kinds[now] = one.ids, CONVERSATION_OFFSET + before + np.arange(count), 1
            talk[row, :count], order[now] = now, row * longest + np.arange(count)
            mask[row, 0, : len(one.context), len(one.context) :] = _HIDDEN
            at += count
        for row in range(len(talks)):
            ids[at : at + len(own)], positions[at : at + len(own)] = own, places
            for r, rule in enumerate(rules):
                now = np.arange(at, at + len(rule))
                block[row, r, : len(rule)] = now
                order[now] = windows * longest + (row * len(rules) + r) * length + np.arange(len(rule))
                at += len(rule)
        feed = {"ids": ids, "positions": positions, "kinds": kinds, "talk": talk, "mask": mask}
        return {**feed, "rules": block, "order": order}

    def _up(self, size: int) -> int:
        return -(-size // self._step) * self._step


def batches(lengths: Sequence[int], rules: int, most: int) -> list[list[int]]:
    """Return the places of windows in batches of like length, of at most `most` tokens each where one window has fewer.

    Args:
        lengths: tokens of each window.
        rules: tokens of the rules that each window brings with it.
        most: tokens of a batch.
    """
    found: list[list[int]] = []
    used = most + 1
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if used + lengths[i] + rules > most:
            found.append([])
            used = 0
        found[-1].append(i)
        used += lengths[i] + rules
    return found
