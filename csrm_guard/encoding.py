"""Turn a conversation and rules into token ids: pieces, windows, rule chunks.

Shapes: T tokens of one sequence. A sequence holds one window of one conversation followed by
rules, told apart by *blocks*: 0 context, 1 judged message, 2 + k the k-th rule, -1 padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from csrm_guard.messages import Message
from csrm_guard.template import render_context, render_judged, render_permits

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["CONTEXT", "FIRST_RULE", "JUDGED", "ConversationIds", "Encoder", "Limits", "Window"]

CONTEXT, JUDGED, FIRST_RULE = 0, 1, 2
_STEP = 64
_PIECES_CACHED = 512
_PIECE_CHARS = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """How many tokens a model reads at once.

    Attributes:
        conversation: context and judged window together.
        judged: the judged message's share of a window.
        stride: how far one window lies behind the other; `judged - stride` overlap.
        rule: one chunk of one rule with its permissions.
        rule_stride: how far one rule chunk lies behind the other.
        sequence: one whole sequence: a window and the rules packed behind it.
    """

    conversation: int = 384
    judged: int = 256
    stride: int = 192
    rule: int = 160
    rule_stride: int = 120
    sequence: int = 768

    def __post_init__(self) -> None:
        if not (0 < self.stride < self.judged < self.conversation and 0 < self.rule_stride < self.rule):
            raise ValueError("limits: 0 < stride < judged < conversation and 0 < rule_stride < rule must hold")


@dataclass(frozen=True, slots=True)
class Window:
    """One window over the judged message.

    Attributes:
        context: token ids of the context that is kept with it.
        judged: token ids of the label and this part of the judged message.
        start: first character of the judged text in this window.
        end: character behind the last one in this window.
    """

    context: tuple[int, ...]
    judged: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ConversationIds:
    """A conversation cut into windows that together hold every token of the judged message.

    Attributes:
        windows: at least one.
        judged_tokens: tokens of the judged message, all of them read.
        context_tokens: tokens of the earlier turns.
        context_read: how many of these the model reads; the oldest are left out first.
    """

    windows: tuple[Window, ...]
    judged_tokens: int
    context_tokens: int
    context_read: int


class Encoder:
    """Encode text with a tokenizer in which only this class places special tokens.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; its padding and truncation are switched off.
        cls: token that opens a rule.
        sep: token that opens every other piece and closes a rule.
        limits: how many tokens the model reads at once.
    """

    def __init__(self, tokenizer: Tokenizer, *, cls: str, sep: str, limits: Limits) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # "[SEP]" typed by a user becomes the tokens of "[", "SEP", "]": data, never a separator.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.limits = limits
        self.cls = _special(tokenizer, cls)
        self.sep = _special(tokenizer, sep)
        self._known = lru_cache(maxsize=_PIECES_CACHED)(lambda text: tuple(self._ids(text)))

    def conversation(self, messages: Sequence[Message]) -> ConversationIds:
        """Return the windows over the last message, each with the context that fits."""
        label, body = render_judged(messages[-1])
        head = [self.sep, *self._ids(label)]
        encoding = self._tokenizer.encode(body, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        pieces = [(self.sep, *self._piece(render_context(m))) for m in messages[:-1]]
        context = [token for piece in pieces for token in piece]
        size = self.limits.judged - len(head)
        spans = _spans(len(ids), size, min(self.limits.stride, size))
        widest = max(stop - start for start, stop in spans) + len(head)
        room = self.limits.conversation - widest
        if len(context) > room:
            # In steps, so that candidates of unlike length share the prompt that is left.
            room -= room % _STEP if room > _STEP else 0
        kept = tuple(context[len(context) - room :] if len(context) > room else context)
        windows = tuple(Window(kept, (*head, *ids[i:j]), *_characters(offsets, i, j)) for i, j in spans)
        return ConversationIds(windows, len(ids), len(context), len(kept))

    def rule(self, text: str, permits: Sequence[str] = ()) -> list[list[tuple[int, ...]]]:
        """Return a rule as alternatives of chunks.

        Chunks of one alternative together hold the whole rule: the rule's violation is the
        largest over chunks. Alternatives hold the permissions, as many in each as fit: a
        permission can only excuse, so the violation is the smallest over alternatives.
        """
        body = self._ids(text)
        groups = self._permit_groups(permits, room=self.limits.rule // 2)
        return [self._chunks(body, group) for group in groups]

    def _permit_groups(self, permits: Sequence[str], *, room: int) -> list[list[int]]:
        groups: list[list[int]] = []
        pending: list[str] = []
        for text in permits:
            longer = self._ids(render_permits([*pending, text]))
            if pending and len(longer) > room:
                groups += self._cut(self._ids(render_permits(pending)), room)
                pending = [text]
            else:
                pending.append(text)
        return groups + (self._cut(self._ids(render_permits(pending)), room) if pending else [[]])

    @staticmethod
    def _cut(permits: list[int], room: int) -> list[list[int]]:
        """Return a permission in overlapping parts that fit: one, but for a very long one."""
        return [permits[i:j] for i, j in _spans(len(permits), room, max(room * 3 // 4, 1))]

    def _chunks(self, body: list[int], permits: list[int]) -> list[tuple[int, ...]]:
        tail = [self.sep, *permits] if permits else []
        size = self.limits.rule - len(tail) - 2
        stride = min(self.limits.rule_stride, max(size * 3 // 4, 1))
        return [(self.cls, *body[i:j], *tail, self.sep) for i, j in _spans(len(body), size, stride)]

    def _piece(self, text: str) -> tuple[int, ...]:
        """Return the ids of an earlier turn, which comes again with each next one."""
        return self._known(text) if len(text) <= _PIECE_CHARS else tuple(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _special(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return int(found)


def _spans(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Return overlapping [start, stop) spans of at most `size` that cover `length`."""
    spans = [(0, min(size, length))]
    while spans[-1][1] < length:
        start = spans[-1][0] + stride
        spans.append((start, min(start + size, length)))
    return spans


def _characters(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    return (offsets[start][0], offsets[stop - 1][1]) if stop > start else (0, 0)
