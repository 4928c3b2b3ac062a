"""Fit the map from logits to probabilities on rows of held-out deployments."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import isotonic_regression

from csrm_guard.calibration import Calibration, Curve, Method
from csrm_guard.messages import Stage
from csrm_guard_train.metrics import brier, ece, smooth_ece

__all__ = ["Choice", "best_method", "fit_calibration", "report"]

Floats = NDArray[np.float64]
Choice: TypeAlias = Literal["auto", "temperature", "platt", "isotonic"]
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
METHODS: tuple[Method, ...] = ("temperature", "platt", "isotonic")
# A stage with fewer rows of either label than this follows the common curve.
STAGE_ROWS = 100
# An isotonic block stands for at least this many rows: shorter ones are noise.
BLOCK_ROWS = 20
_HAIR = 1e-3


def fit_calibration(
    z: Floats,
    y: Floats,
    benign: Floats,
    *,
    method: Method = "platt",
    stages: Sequence[Stage] | None = None,
    benign_stages: Sequence[Stage] | None = None,
) -> Calibration:
    """Return the curve under which y is likeliest, with a stage's own where it has enough rows.

    Args:
        z: the largest logit of each row (N,); p_safe is 1 minus its probability, so it is this
            maximum that has to be calibrated.
        y: 1 unsafe, 0 safe (N,).
        benign: logits of single rules that safe rows keep (M,), for false-positive rates.
        method: `platt`; `temperature`, which keeps the boundary at z = 0; `isotonic`, which follows
            any rising shape.
        stages: stage of each row (N,); without it all stages share one curve.
        benign_stages: stage of each benign logit (M,).
    """
    common = _curve(z, y, method)
    own: dict[Stage, Curve] = {}
    for stage in sorted(set(stages or ())):
        part = np.array([s == stage for s in stages or ()])
        if min((y[part] == 1).sum(), (y[part] == 0).sum()) >= STAGE_ROWS:
            own[stage] = _curve(z[part], y[part], method)
    fitted = Calibration(**common.model_dump(), stages=own, rows=len(z))
    q = fitted.q(benign)
    if benign_stages is not None:
        q = _by_stage(fitted, benign, benign_stages)
    stored = tuple((rate, float(np.quantile(q, 1.0 - rate))) for rate in RATES)
    return fitted.model_copy(update={"benign": stored})


def best_method(z: Floats, y: Floats, owners: Sequence[str]) -> Method:
    """Return the method whose cross-fitted probabilities have the smallest Brier score."""
    return min(METHODS, key=lambda method: brier(y, _crossed(z, y, method, owners, None)))


def _curve(z: Floats, y: Floats, method: Method) -> Curve:
    """Return one curve by maximum likelihood; isotonic ones lean on Platt's beyond their ends."""

    def loss(parameters: Floats) -> float:
        slope, intercept = np.exp(parameters[0]), 0.0 if method == "temperature" else parameters[1]
        logit = slope * z + intercept
        return float(np.mean(np.logaddexp(0.0, logit) - y * logit))

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
    slope = float(np.exp(found.x[0]))
    if method == "temperature":
        return Curve(method=method, slope=slope)
    if method == "isotonic" and len(knots := _knots(z, y)) >= 2:
        return Curve(method=method, slope=slope, knots=knots)
    return Curve(method="platt", slope=slope, intercept=float(found.x[1]))


def _knots(z: Floats, y: Floats) -> tuple[tuple[float, float], ...]:
    """Return both ends of each of the isotonic fit's blocks, with the block's log-odds.

    Within a block the curve rises by a hair, so that no order is lost. Half a row of each label
    is added to every piece, so that none is certain.
    """
    pieces = np.array_split(np.argsort(z, kind="stable"), max(len(z) // BLOCK_ROWS, 1))
    rates = np.array([(y[piece].sum() + 0.5) / (len(piece) + 1.0) for piece in pieces])
    flat = isotonic_regression(rates, sample_weight=[float(len(piece)) for piece in pieces])
    means = np.array([z[piece].mean() for piece in pieces])
    knots: list[tuple[float, float]] = []
    for value in np.unique(flat):
        block = means[flat == value]
        logit = float(np.log(value) - np.log1p(-value))
        ends = [block[0]] if len(block) == 1 else [block[0], block[-1]]
        for at, shift in zip(ends, (-_HAIR, _HAIR), strict=False):
            if not knots or (at > knots[-1][0] and logit + shift > knots[-1][1]):
                knots.append((float(at), logit + shift))
    return tuple(knots)


def report(
    z: Floats, y: Floats, calibration: Calibration, owners: Sequence[str], stages: Sequence[Stage] | None = None
) -> dict[str, Any]:
    """Return ECE, smECE and Brier before and after, on the rows of the fit, and cross-fitted.

    The cross-fitted figures are the honest ones: each half of the owners is judged by a map fitted
    on the other half. They are given for every method.

    Args:
        z: the largest logit of each row (N,).
        y: 1 unsafe, 0 safe (N,).
        calibration: fitted on all of them.
        owners: what each row was made from; rows of one owner stay in one half.
        stages: stage of each row (N,), if the calibration was fitted by stage.
    """
    raw = 1.0 / (1.0 + np.exp(-z))
    fitted = _by_stage(calibration, z, stages) if stages else calibration.q(z)
    found: dict[str, Any] = {"method": calibration.method, "raw": _errors(y, raw), "fitted": _errors(y, fitted)}
    found["cross_fitted"] = _errors(y, _crossed(z, y, calibration.method, owners, stages))
    found["cross_fitted_by_method"] = {m: _errors(y, _crossed(z, y, m, owners, None)) for m in METHODS}
    if stages:
        found["cross_fitted_by_method"][f"{calibration.method}, by stage"] = found["cross_fitted"]
    return found


def _by_stage(calibration: Calibration, z: Floats, stages: Sequence[Stage]) -> Floats:
    """Return the probabilities of logits (N,) of stages (N,)."""
    return np.array([calibration.q(z[i : i + 1], stage)[0] for i, stage in enumerate(stages)])


def _errors(y: Floats, p: Floats) -> dict[str, float]:
    return {"ece": round(ece(y, p), 4), "smece": round(smooth_ece(y, p), 4), "brier": round(brier(y, p), 4)}


def _crossed(z: Floats, y: Floats, method: Method, owners: Sequence[str], stages: Sequence[Stage] | None) -> Floats:
    half = np.array([sha256(owner.encode()).digest()[0] % 2 == 0 for owner in owners])
    names = list(stages) if stages else None
    p = np.empty(len(z))
    for part in (half, ~half):
        others = [s for s, out in zip(names, part, strict=True) if not out] if names else None
        c = fit_calibration(z[~part], y[~part], z[~part], method=method, stages=others)
        mine = [s for s, inside in zip(names, part, strict=True) if inside] if names else None
        p[part] = _by_stage(c, z[part], mine) if mine else c.q(z[part])
    return p
