"""Keys and values of conversations' beginnings, kept so that a shared prompt is computed once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Past", "PrefixCache"]

# Per layer keys and values (heads, P, d) of P tokens, in the arithmetic of the graph.
Past: TypeAlias = tuple[NDArray[np.floating[Any]], ...]

_REMEMBERED = 4096


class PrefixCache:
    """Least recently used prompts go first. Safe to share between threads.

    A prompt is kept from its second sight on, since most are seen once and copying costs time.

    Args:
        max_bytes: of all that is kept; 0 keeps nothing.

    Attributes:
        hits: prompts that were asked for and there.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[int, ...], Past] = OrderedDict()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._bytes = 0
        self.hits = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        return self._bytes

    def get(self, tokens: tuple[int, ...]) -> Past | None:
        """Return what was kept of a prompt."""
        with self._lock:
            found = self._kept.get(tokens)
            if found is not None:
                self._kept.move_to_end(tokens)
                self.hits += 1
            return found

    def wants(self, tokens: tuple[int, ...]) -> bool:
        """Return whether a prompt was asked for before, and take note that it is asked for now."""
        if not self._max_bytes:
            return False
        key = hash(tokens)
        with self._lock:
            again = key in self._seen
            self._seen[key] = None
            self._seen.move_to_end(key)
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return again

    def put(self, tokens: tuple[int, ...], past: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Keep the first `len(tokens)` columns of keys and values."""
        own = tuple(np.ascontiguousarray(a[:, : len(tokens)]) for a in past)
        size = sum(a.nbytes for a in own)
        with self._lock:
            if tokens in self._kept or size > self._max_bytes:
                return
            self._kept[tokens] = own
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= sum(a.nbytes for a in dropped)

    def clear(self) -> None:
        """Forget every prompt."""
        with self._lock:
            self._kept.clear()
            self._seen.clear()
            self._bytes = 0
