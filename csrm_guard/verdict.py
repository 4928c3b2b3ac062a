"""What was decided, as data."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csrm_guard.messages import Stage
    from csrm_guard.policy import Action, Severity

__all__ = ["Coverage", "RuleResult", "Timings", "Verdict", "reward_of"]

_EDGE = 1e-6


def reward_of(p_safe: float) -> float:
    """Return the log-odds of safe, finite: p_safe is kept within [1e-6, 1 - 1e-6]."""
    p = min(max(p_safe, _EDGE), 1.0 - _EDGE)
    return math.log(p / (1.0 - p))


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule's part in a verdict.

    Attributes:
        id: the rule.
        q: calibrated P(the judged message violates the rule), in [0, 1].
        threshold: q from which the rule is triggered.
        violated: whether q reached the threshold, or the rule could not be scored and refuses.
        action: what a violation leads to.
        severity: the rule's own.
        span: characters [start, end) of the judged text in the window with the highest q.
        spans: every window, or every place that a check found, that triggered the rule.
        exact: whether `spans` are places that a check found, not windows.
    """

    id: str
    q: float
    threshold: float
    violated: bool
    action: Action
    severity: Severity
    span: tuple[int, int]
    spans: tuple[tuple[int, int], ...] = ()
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was read.

    Attributes:
        windows: windows over the judged message; together they hold all of it.
        judged_tokens: tokens of the judged message, all read.
        context_tokens: tokens of the earlier turns.
        context_read: how many of these were read; the oldest are left out first.
        unread: types of judged parts that a text model cannot read, e.g. `image_url`.
    """

    windows: int
    judged_tokens: int = 0
    context_tokens: int = 0
    context_read: int = 0
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent; in a batch, a row's share of it. `wait`: in a queue before that."""

    tokenise: float = 0.0
    run: float = 0.0
    decide: float = 0.0
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one message.

    Attributes:
        allowed: whether the message may pass unchanged.
        action: the strongest action of the violated rules; None if none was violated.
        p_safe: calibrated P(no applicable rule is violated), in [0, 1]: 1 - the largest q.
            0.0 when `degraded`: nothing was scored.
        reward: log-odds of safe; unbounded in meaning, higher is safer, 0 is the boundary.
        rules: every applicable rule, the most violated first.
        stages: at which stages the message was judged.
        policy_hash: identity of the policy.
        model: identity of the model.
        coverage: what was read.
        degraded: the model failed and the rules' `on_error` decided.
        error: what failed, when degraded.
        would: in shadow mode, the action that the policy would have taken; the message passed all the same.
        timings: seconds spent.
    """

    allowed: bool
    action: Action | None
    p_safe: float
    reward: float
    rules: tuple[RuleResult, ...]
    stages: tuple[Stage, ...]
    policy_hash: str
    model: str
    coverage: Coverage
    degraded: bool = False
    error: str | None = None
    timings: Timings = Timings()
    would: Action | None = None

    @property
    def violated(self) -> tuple[RuleResult, ...]:
        """The violated rules, the most violated first."""
        return tuple(rule for rule in self.rules if rule.violated)

    @property
    def error_type(self) -> str | None:
        """The class of what failed; its text may quote the message and is left out of logs."""
        found = re.match(r"(?:check [^:]*: )?(\w+)", self.error or "")
        return found[1] if found else None

    def summary(self) -> str:
        """Return the decision in one line for people."""
        if self.degraded:
            return f"{'allowed' if self.allowed else 'blocked'}, not scored: {self.error}"
        ids = ", ".join(f"{r.id} (q={r.q:.2f})" for r in self.violated)
        word = "allowed" if self.allowed else f"not allowed ({self.action})"
        if self.would not in (None, "observe"):
            word = f"allowed in shadow mode (else {self.would})"
        return f"{word}, p_safe={self.p_safe:.2f}" + (f", violates {ids}" if ids else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data, ready for JSON."""
        return asdict(self)
