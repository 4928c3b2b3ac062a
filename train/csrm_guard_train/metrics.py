"""Numbers that say how good scores are. p is P(unsafe) in [0, 1]; y is 1 unsafe, 0 safe; both (N,)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

__all__ = ["adaptive_ece", "auroc", "bootstrap", "brier", "classification_report", "decisions", "ece", "smooth_ece"]

Floats = NDArray[np.float64]


def auroc(y: Floats, p: Floats) -> float:
    """Return P(an unsafe row scores above a safe one), ties one half; nan if one class is absent."""
    if len(np.unique(y)) < 2:
        return float("nan")
    return float(roc_auc_score(y, p))


def ece(y: Floats, p: Floats, *, bins: int = 15) -> float:
    """Return the expected calibration error over equal-width bins (Guo et al. 2017, binary form)."""
    index = np.minimum((p * bins).astype(int), bins - 1)
    return _binned(y, p, index, bins)


def adaptive_ece(y: Floats, p: Floats, *, bins: int = 15) -> float:
    """Return the expected calibration error over bins of equal mass; equal p share a bin."""
    edges = np.quantile(p, np.linspace(0.0, 1.0, bins + 1)[1:-1])
    return _binned(y, p, np.searchsorted(edges, p, side="left"), bins)


def _binned(y: Floats, p: Floats, index: NDArray[np.int_], bins: int) -> float:
    gaps = [abs((y[index == b] - p[index == b]).sum()) for b in range(bins)]
    return float(sum(gaps) / max(len(p), 1))


def brier(y: Floats, p: Floats) -> float:
    """Return the mean squared error of the probabilities."""
    return float(np.mean((p - y) ** 2))


def smooth_ece(y: Floats, p: Floats, *, grid: int = 1001) -> float:
    """Return smECE (Blasiok and Nakkiran 2023, arXiv 2309.12236), from the formula.

    The residuals y - p are smoothed with a Gaussian kernel reflected at 0 and 1; the error at
    width s is the integral of the absolute smoothed residual, and smECE is the fixed point
    error(s) = s. The error falls as s grows, so bisection finds it.
    """
    place = np.clip(np.rint(p * (grid - 1)).astype(int), 0, grid - 1)
    mass = np.bincount(place, weights=y - p, minlength=grid) / len(p)

    def error(width: float) -> float:
        # `reflect` mirrors the mass at 0 and at 1, so that none is smoothed out of [0, 1].
        smoothed = gaussian_filter1d(mass, width * (grid - 1), mode="reflect", truncate=5.0)
        return float(np.abs(smoothed).sum())

    low, high = 1e-3, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > middle else (low, middle)
    return high


def decisions(y: Floats, p: Floats, *, threshold: float = 0.5) -> dict[str, float]:
    """Return counts, both classes' F1 and the AUROC; positive is P(unsafe) >= threshold."""
    guess = (p >= threshold).astype(int)
    return {
        "n": float(len(y)),
        "prevalence": float(np.mean(y)),
        "f1_unsafe": float(f1_score(y, guess, pos_label=1, zero_division=0)),
        "f1_safe": float(f1_score(y, guess, pos_label=0, zero_division=0)),
        "f1_macro": float(f1_score(y, guess, average="macro", labels=[0, 1], zero_division=0)),
        "accuracy": float(np.mean(guess == y)),
        "auroc": auroc(y, p),
    }


def classification_report(y: Floats, p: Floats, *, threshold: float = 0.5) -> dict[str, float]:
    """Return the standard numbers at a threshold on P(unsafe), and those that need none."""
    both = len(np.unique(y)) == 2
    return {
        **decisions(y, p, threshold=threshold),
        "auprc_unsafe": float(average_precision_score(y, p)) if both else float("nan"),
        "auprc_safe": float(average_precision_score(1 - y, 1 - p)) if both else float("nan"),
        "ece": ece(y, p),
        "ece_adaptive": adaptive_ece(y, p),
        "smece": smooth_ece(y, p),
        "brier": brier(y, p),
    }


def bootstrap(y: Floats, p: Floats, *, rounds: int = 500, seed: int = 0) -> tuple[float, float]:
    """Return the 95% percentile interval of the AUROC over resampled rows."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        pick = rng.integers(0, len(y), len(y))
        if len(np.unique(y[pick])) == 2:
            values.append(auroc(y[pick], p[pick]))
    if not values:
        return float("nan"), float("nan")
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))
