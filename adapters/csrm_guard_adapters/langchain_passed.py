"""What has passed already, so that an agent's messages are judged once each."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from csrm_guard import Message

__all__ = ["Passed"]


class Passed:
    """Digests of conversations whose last message may be seen; the oldest are forgotten and judged again.

    They are kept here and not on the messages: whoever may send a message could mark it as judged.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int = 4096) -> None:
        self._size, self._lock = size, threading.Lock()
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def add(self, talk: tuple[Message, ...], place: int = -1) -> None:
        """Take note that the message at a place of a conversation has passed."""
        digest = _digest(talk, place)
        with self._lock:
            self._digests[digest] = None
            while len(self._digests) > self._size:
                self._digests.popitem(last=False)

    def has(self, talk: tuple[Message, ...], place: int = -1) -> bool:
        """Tell whether it has."""
        digest = _digest(talk, place)
        with self._lock:
            return digest in self._digests


def _digest(talk: tuple[Message, ...], place: int) -> bytes:
    place %= len(talk)
    before = place
    if talk[place].role == "tool":
        # Tools run side by side: each result is judged without the others.
        while before and talk[before - 1].role != "assistant":
            before -= 1
    view = (*talk[:before], talk[place])
    return hashlib.blake2b(repr(view).encode("utf-8", "surrogatepass"), digest_size=16).digest()
