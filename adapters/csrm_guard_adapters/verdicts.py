"""Verdicts beside a vendor's object: kept here, so that the object stays the vendor's own."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from csrm_guard import Verdict
from csrm_guard.flow import Ending, Outcome

__all__ = ["Verdicts", "attach", "verdicts_of"]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was decided on one call.

    Attributes:
        prompt: one verdict per new message that was sent.
        answer: one per judged part of the answer; None: it was empty.
        endings: what was done with each part of the answer: kept, redacted, fallback, blocked.
        rewrites: how many answers were rejected and asked for again.
    """

    prompt: tuple[Verdict, ...] = ()
    answer: tuple[Verdict | None, ...] = ()
    endings: tuple[Ending, ...] = ()
    rewrites: int = 0

    @property
    def allowed(self) -> bool:
        """Whether nothing was changed or stopped."""
        judged = (*self.prompt, *self.answer)
        return all(v is None or v.allowed for v in judged)


# By identity: vendors' objects compare by content and have no hash.
_KEPT: dict[int, tuple[weakref.ref[Any], Verdicts]] = {}


def attach(found: Any, verdicts: Verdicts) -> None:
    """Keep verdicts for as long as an object lives."""
    key = id(found)
    _KEPT[key] = weakref.ref(found, lambda _: _KEPT.pop(key, None)), verdicts


def verdicts_of(response: object) -> Verdicts:
    """Return the verdicts on a response or stream of a guarded client; of a stream, those so far.

    Raises:
        LookupError: no guarded client returned it.
    """
    kept = _KEPT.get(id(response))
    if kept is None or kept[0]() is not response:
        raise LookupError(f"no verdicts for this {type(response).__name__}: a guarded client did not return it")
    return kept[1]


def summarise(outcome: Outcome[Any]) -> Verdicts:
    """Return the verdicts of a call's outcome."""
    choices = outcome.choices
    return Verdicts(
        outcome.admission.verdicts,
        tuple(c.verdict for c in choices),
        tuple(c.ending for c in choices),
        len(outcome.discarded),
    )
