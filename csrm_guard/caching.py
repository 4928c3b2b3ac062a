"""Answer a question that was answered before from memory."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from csrm_guard.messages import stages_of
from csrm_guard.model import AsyncRewardModel, Reading, RewardModel, ScoringRequest
from csrm_guard.template import render_context, render_permits, render_rule

__all__ = ["CachedRewardModel"]


class CachedRewardModel:
    """Wrap a model so that equal conversations under equal rules are scored once.

    What is kept is the model's reading, by a hash of conversation, stages, rules and permissions: no text. Actions,
    thresholds and checks are decided anew each time; failures are not kept.

    Args:
        model: what scores.
        size: readings that are kept, the least recently used dropped first.
    """

    def __init__(self, model: RewardModel, size: int = 10_000) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}; for no cache, use the model itself")
        self.model = model
        self.id = model.id
        self._size = size
        self._kept: OrderedDict[bytes, Reading] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return one reading per request, in order; a kept one took no time."""
        keys, found, missing = self._look_up(requests)
        fresh = self.model.score([requests[i] for i in missing]) if missing else []
        return self._filled(keys, found, missing, fresh)

    async def ascore(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return what `score` returns without blocking the event loop."""
        keys, found, missing = self._look_up(requests)
        if not missing:
            return self._filled(keys, found, missing, [])
        asked = [requests[i] for i in missing]
        if isinstance(self.model, AsyncRewardModel):
            fresh = await self.model.ascore(asked)
        else:
            fresh = await asyncio.to_thread(self.model.score, asked)
        return self._filled(keys, found, missing, fresh)

    def threshold_at(self, fpr: float) -> float:
        """Return the model's threshold."""
        return self.model.threshold_at(fpr)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()

    def _look_up(self, requests: Sequence[ScoringRequest]) -> tuple[list[bytes], list[Reading | None], list[int]]:
        """Return keys, kept readings, and the places of the first request of each key that is not kept."""
        keys = [_key(request) for request in requests]
        with self._lock:
            found = [self._kept.get(key) for key in keys]
            for key, reading in zip(keys, found, strict=True):
                if reading is not None:
                    self._kept.move_to_end(key)
        first: dict[bytes, int] = {}
        for i, (key, reading) in enumerate(zip(keys, found, strict=True)):
            if reading is None:
                first.setdefault(key, i)
        with self._lock:
            self.hits += len(keys) - len(first)
            self.misses += len(first)
        return keys, found, list(first.values())

    def _filled(
        self, keys: Sequence[bytes], found: Sequence[Reading | None], missing: Sequence[int], fresh: Sequence[Reading]
    ) -> list[Reading]:
        new = {keys[i]: reading for i, reading in zip(missing, fresh, strict=True)}
        with self._lock:
            for key, reading in new.items():
                self._kept[key] = replace(reading, tokenise=0.0, run=0.0, wait=0.0)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return [reading if reading is not None else new[key] for key, reading in zip(keys, found, strict=True)]


def _key(request: ScoringRequest) -> bytes:
    parts = [render_context(message) for message in request.messages]
    parts += [",".join(message.unread) for message in request.messages]
    parts += [
        "\0rules",
        *map(render_rule, request.rules),
        "\0permits",
        render_permits([p.text for p in request.permits]),
    ]
    parts.append(",".join(stages_of(request.messages[-1])))
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        # Lengths keep "ab", "c" apart from "a", "bc".
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
