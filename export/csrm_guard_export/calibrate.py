"""Fit the map from logits to probabilities on rows of held-out deployments."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from csrm_guard.artifact import Calibration
from csrm_guard_train.metrics import brier, ece, smooth_ece

__all__ = ["fit_calibration", "report", "split_benign"]

Floats = NDArray[np.float64]
Method: TypeAlias = Literal["temperature", "platt"]
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def fit_calibration(z: Floats, y: Floats, benign: Floats, *, method: Method = "platt") -> Calibration:
    """Return the map that minimises the log loss of y under sigmoid(slope * z + intercept).

    Args:
        z: the largest logit of each row (N,); p_safe is 1 minus its probability, so it is this
            maximum that has to be calibrated.
        y: 1 unsafe, 0 safe (N,).
        benign: logits of single rules that safe rows keep (M,), for false-positive rates.
        method: `platt`, or `temperature`, which keeps the boundary at z = 0.
    """

    def loss(parameters: Floats) -> float:
        slope, intercept = np.exp(parameters[0]), parameters[1] if method == "platt" else 0.0
        logit = slope * z + intercept
        return float(np.mean(np.logaddexp(0.0, logit) - y * logit))

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
    slope = float(np.exp(found.x[0]))
    intercept = float(found.x[1]) if method == "platt" else 0.0
    q = 1.0 / (1.0 + np.exp(-(slope * benign + intercept)))
    stored = tuple((rate, float(np.quantile(q, 1.0 - rate))) for rate in RATES)
    return Calibration(method=method, slope=slope, intercept=intercept, benign=stored, rows=len(z))


def report(z: Floats, y: Floats, calibration: Calibration, owners: Sequence[str]) -> dict[str, Any]:
    """Return ECE, smECE and Brier before and after, on the rows of the fit, and cross-fitted.

    The cross-fitted figure is the honest one: each half of the owners is judged by a map fitted
    on the other half.

    Args:
        z: the largest logit of each row (N,).
        y: 1 unsafe, 0 safe (N,).
        calibration: fitted on all of them.
        owners: what each row was made from; rows of one owner stay in one half.
    """
    raw = 1.0 / (1.0 + np.exp(-z))
    fitted = 1.0 / (1.0 + np.exp(-(calibration.slope * z + calibration.intercept)))
    crossed = _crossed(z, y, calibration.method, owners)
    return {name: _errors(y, p) for name, p in (("raw", raw), ("fitted", fitted), ("cross_fitted", crossed))}


def _errors(y: Floats, p: Floats) -> dict[str, float]:
    return {"ece": round(ece(y, p), 4), "smece": round(smooth_ece(y, p), 4), "brier": round(brier(y, p), 4)}


def _crossed(z: Floats, y: Floats, method: Method, owners: Sequence[str]) -> Floats:
    half = np.array([sha256(owner.encode()).digest()[0] % 2 == 0 for owner in owners])
    p = np.empty(len(z))
    for part in (half, ~half):
        c = fit_calibration(z[~part], y[~part], z[~part], method=method)
        p[part] = 1.0 / (1.0 + np.exp(-(c.slope * z[part] + c.intercept)))
    return p


def split_benign(rows: Sequence[tuple[Floats, tuple[str, ...], frozenset[str]]]) -> Floats:
    """Return the logits of the rules that were kept: (logits, rule ids, violated ids) per row."""
    kept = [z for logits, ids, violated in rows for z, i in zip(logits, ids, strict=True) if i not in violated]
    return np.array(kept, np.float64)
