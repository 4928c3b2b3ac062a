"""Score labelled rows under their own policy and under controls, and report what that shows.

A model that reads policies is right only under the real one. The controls say how much of a
score comes from elsewhere: *policy-blind* replaces all rules by one neutral sentence, *shuffled*
gives each row the rules of another row, *constant* never looks at anything, *TF-IDF* knows words only.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from csrm_guard.bulk import score_row
from csrm_guard.calibration import Calibration
from csrm_guard.guard import Guard
from csrm_guard.messages import stages_of
from csrm_guard.model import RewardModel
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row
from csrm_guard.verdict import Verdict
from csrm_guard_train.baselines import Reads, cross_fitted
from csrm_guard_train.metrics import auroc, bootstrap, classification_report, decisions, ece, smooth_ece

__all__ = ["NEUTRAL", "EvaluationError", "Scored", "blind", "constants", "evaluate", "score_rows", "shuffled"]

NEUTRAL = "The message must be acceptable."
Floats = NDArray[np.float64]


class EvaluationError(Exception):
    """Rows cannot be evaluated; the message names the row."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A row with what the model made of it: P(unsafe), and q of each rule by id."""

    row: Row
    p_unsafe: float
    rules: dict[str, float]


def evaluate(
    rows: Sequence[Row],
    model: RewardModel,
    *,
    seed: int = 0,
    rounds: int = 500,
    calibration: Calibration | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return every number of the report.

    Args:
        rows: labelled rows that carry their policy.
        model: what scores.
        seed: of the shuffle and the bootstrap.
        rounds: of the bootstrap.
        calibration: the model's own, to show errors without it as well.
        progress: called once per scored row and control.

    Raises:
        EvaluationError: a row without label or policy, or the model failed on one.
    """
    for row in rows:
        if row.label is None or row.policy is None:
            raise EvaluationError(f"row {row.id!r}: an evaluation needs `label` and `policy`")
    y = np.array([bool(row.label) for row in rows], np.float64)
    began = time.perf_counter()
    real = score_rows(rows, model, progress)
    took = time.perf_counter() - began
    found: dict[str, Any] = {
        "model": model.id,
        "seed": seed,
        "ms_per_check": 1_000 * took / max(len(rows), 1),
        "real": _report(y, real, seed, rounds, calibration),
        "policy_blind": _report(y, score_rows(blind(rows), model, progress), seed, rounds, calibration),
        "shuffled_policy": _report(y, score_rows(shuffled(rows, seed), model, progress), seed, rounds, calibration),
        "constant": constants(y),
        "tfidf": _baselines(y, rows, seed, rounds),
        "rules": _rule_report(real),
        "policies": _by_policy(real),
        "scores": _scores(real, calibration),
    }
    found["auroc_gain_over_blind"] = found["real"]["auroc"] - found["policy_blind"]["auroc"]
    found["auroc_gain_over_shuffled"] = found["real"]["auroc"] - found["shuffled_policy"]["auroc"]
    return found


def score_rows(rows: Sequence[Row], model: RewardModel, progress: Callable[[], None] = lambda: None) -> list[Scored]:
    """Return each row scored under its own policy, in order.

    Raises:
        EvaluationError: the model failed on a row; a failure is not a score.
    """
    guards: dict[str, Guard] = {}
    found = []
    for row in rows:
        assert row.policy is not None, row.id
        guard = guards.setdefault(row.policy.hash, Guard(row.policy, model))
        verdict: Verdict = score_row(guard, row)
        if verdict.degraded:
            raise EvaluationError(f"row {row.id!r}: not scored: {verdict.error}")
        found.append(Scored(row, 1.0 - verdict.p_safe, {rule.id: rule.q for rule in verdict.rules}))
        progress()
    return found


def blind(rows: Sequence[Row]) -> list[Row]:
    """Return the rows under one neutral sentence instead of their rules."""
    policy = Policy(name="neutral", rules=(Rule(id="neutral", text=NEUTRAL),))
    return [replace(row, policy=policy) for row in rows]


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return each row under the policy of another row, of other rules where there are any."""
    rng = random.Random(seed)
    found = []
    for row in rows:
        others = [rng.choice(rows).policy for _ in range(20)]
        texts = _texts(row.policy)
        foreign = next((p for p in others if not texts & _texts(p)), others[0])
        found.append(replace(row, policy=foreign))
    return found


def constants(y: Floats) -> dict[str, dict[str, float]]:
    """Return the numbers of predictors that never look: always unsafe, always safe."""
    return {
        "always_unsafe": classification_report(y, np.ones_like(y)),
        "always_safe": classification_report(y, np.zeros_like(y)),
    }


def _texts(policy: Policy | None) -> set[str]:
    return {rule.text for rule in policy.rules} if policy else set()


def _report(
    y: Floats, scored: Sequence[Scored], seed: int, rounds: int, calibration: Calibration | None
) -> dict[str, Any]:
    p = np.array([s.p_unsafe for s in scored])
    found: dict[str, Any] = dict(classification_report(y, p))
    found["auroc_ci95"] = bootstrap(y, p, rounds=rounds, seed=seed)
    if calibration is not None:
        raw = _raw(scored, calibration)
        found["ece_raw"], found["smece_raw"] = ece(y, raw), smooth_ece(y, raw)
    return found


def _raw(scored: Sequence[Scored], calibration: Calibration) -> Floats:
    """Return P(unsafe) as it would be without calibration (N,)."""
    p = np.clip([s.p_unsafe for s in scored], 1e-9, 1 - 1e-9)
    curves = [calibration.curve(stages_of(s.row.messages[-1])[0]) for s in scored]
    z = [float(curve.raw(value)) for curve, value in zip(curves, np.log(p) - np.log1p(-p), strict=True)]
    return np.array(1.0 / (1.0 + np.exp(-np.array(z))), np.float64)


def _baselines(y: Floats, rows: Sequence[Row], seed: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the numbers of a cross-fitted TF-IDF model, by what it reads; none if all rows share a deployment."""
    names = [row.policy.name if row.policy else "" for row in rows]
    # Under one policy for all, what must not be torn apart is the answers to one prompt.
    groups = names if len(set(names)) > 1 else [row.messages[0].content for row in rows]
    if len(set(groups)) < 2 or len(np.unique(y)) < 2:
        return {}
    found = {}
    for reads in get_args(Reads):
        p = cross_fitted(rows, groups, reads=reads)
        found[reads] = {**classification_report(y, p), "auroc_ci95": bootstrap(y, p, rounds=rounds, seed=seed)}
    return found


def _scores(scored: Sequence[Scored], calibration: Calibration | None) -> list[dict[str, Any]]:
    """Return each row's score, so that a plot or another number needs no second run."""
    raw = _raw(scored, calibration) if calibration else np.array([s.p_unsafe for s in scored])
    return [
        {
            "id": s.row.id,
            "label": "unsafe" if s.row.label else "safe",
            "p_unsafe": s.p_unsafe,
            "p_raw": float(value),
            "rules": s.rules,
        }
        for s, value in zip(scored, raw, strict=True)
    ]


def _rule_report(scored: Sequence[Scored]) -> dict[str, float]:
    """Return how well single rules are told apart, where rows say which were violated."""
    known = [s for s in scored if s.row.violated is not None]
    labels = [i in (s.row.violated or ()) for s in known for i in s.rules]
    q = [value for s in known for value in s.rules.values()]
    broken = [s for s in known if s.row.violated]
    top = [max(s.rules, key=lambda i: s.rules[i]) in (s.row.violated or ()) for s in broken if s.rules]
    return {
        "n": float(len(labels)),
        "auroc": auroc(np.array(labels, np.float64), np.array(q, np.float64)),
        "top_rule_accuracy": float(np.mean(top)) if top else float("nan"),
    }


def _by_policy(scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for s in scored:
        groups[s.row.policy.name if s.row.policy else ""].append(s)
    found = {}
    for name, part in sorted(groups.items()):
        y = np.array([bool(s.row.label) for s in part], np.float64)
        found[name] = decisions(y, np.array([s.p_unsafe for s in part]))
    return found
