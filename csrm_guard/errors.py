"""The error tree.

* CsrmGuardError
  - DocumentError    a file could not be read as data (encoding, syntax, size)
  - PolicyError      the policy is wrong
  - MessageError     the conversation is wrong
  - ArtifactError    the model directory is wrong
  - RuntimeMissing   the inference runtime is not installed
  - ScoringError     the model could not score
    + DeadlineExceeded   it did not answer in time
    + Overloaded         too much waits for it already
  - RowError         a row of a JSONL file is wrong
  - Blocked          the guard said no (carries the Verdict)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csrm_guard.verdict import Verdict

__all__ = [
    "ArtifactError",
    "Blocked",
    "CsrmGuardError",
    "DeadlineExceeded",
    "DocumentError",
    "MessageError",
    "Overloaded",
    "PolicyError",
    "RowError",
    "RuntimeMissing",
    "ScoringError",
]


class CsrmGuardError(Exception):
    """Every error that csrm-guard raises on purpose."""


class DocumentError(CsrmGuardError):
    """A file cannot be read as data: encoding, syntax, size, or an unsafe construct."""


class PolicyError(CsrmGuardError):
    """A policy does not say what to do: unknown key, duplicate rule id, cycle, bad number."""


class MessageError(CsrmGuardError):
    """A conversation cannot be judged: empty, too long, unknown role, unknown shape."""


class ArtifactError(CsrmGuardError):
    """A model directory is incomplete, altered, or made for another template version."""


class RuntimeMissing(CsrmGuardError):
    """ONNX Runtime is not installed; the message names the extra that brings it."""


class ScoringError(CsrmGuardError):
    """The model failed on valid input; a guard turns this into a refusal."""


class DeadlineExceeded(ScoringError):
    """The model did not answer within the guard's deadline; a guard turns this into a refusal."""


class Overloaded(ScoringError):
    """So much waits for the model that more is not accepted; a guard turns this into a refusal."""


class RowError(CsrmGuardError):
    """A row of a JSONL file cannot be used; the message names file and line."""


class Blocked(CsrmGuardError):
    """The guard refused.

    Attributes:
        verdict: the decision, with the rules that caused it.
    """

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.summary())
