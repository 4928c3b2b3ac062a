"""Public fakes: models whose answers a test decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from csrm_guard.errors import ScoringError
from csrm_guard.model import Reading, ScoringRequest

__all__ = ["KeywordRewardModel", "ScriptedRewardModel"]


class KeywordRewardModel:
    """Find every rule violated by messages that hold one of the keywords.

    Args:
        keywords: matched without regard to case.
        violated: q of a message with a keyword.
        kept: q of any other message.
    """

    id = "keyword"

    def __init__(self, *keywords: str, violated: float = 0.99, kept: float = 0.01) -> None:
        self._keywords = tuple(word.lower() for word in keywords)
        self._violated, self._kept = violated, kept

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return one window per request."""
        return [self._read(request) for request in requests]

    def threshold_at(self, fpr: float) -> float:
        """Return the middle of the two answers, whatever the rate."""
        return (self._violated + self._kept) / 2

    def _read(self, request: ScoringRequest) -> Reading:
        last = request.messages[-1]
        text = " ".join([last.content, *(call.arguments for call in last.tool_calls)]).lower()
        hit = any(word in text for word in self._keywords)
        q = np.full((1, len(request.rules)), self._violated if hit else self._kept)
        return Reading(q, ((0, len(last.content)),))


class ScriptedRewardModel:
    """Give answers in the order in which a test wrote them.

    Args:
        answers: per request q of every rule (a float), q by rule id (a dict; others get 0),
            or an exception to raise.
    """

    id = "scripted"

    def __init__(self, answers: Iterable[float | dict[str, float] | Exception]) -> None:
        self._answers = deque(answers)
        self.requests: list[ScoringRequest] = []

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return the next answers; record the requests in `requests`."""
        return [self._read(request) for request in requests]

    def threshold_at(self, fpr: float) -> float:
        """Return 1 - fpr, as if q of harmless messages were uniform."""
        return 1.0 - fpr

    def _read(self, request: ScoringRequest) -> Reading:
        self.requests.append(request)
        if not self._answers:
            raise ScoringError("the script has no answer left")
        answer = self._answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        table = answer if isinstance(answer, dict) else {rule.id: answer for rule in request.rules}
        q = np.array([[table.get(rule.id, 0.0) for rule in request.rules]])
        return Reading(q, ((0, len(request.messages[-1].content)),))
