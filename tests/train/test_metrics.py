import numpy as np
import pytest

from csrm_guard_train.metrics import adaptive_ece, auroc, bootstrap, brier, classification_report, ece, smooth_ece


def calibrated(n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = rng.random(n)
    return (rng.random(n) < p).astype(float), p


def test_auroc_counts_ties_as_one_half():
    assert auroc(np.array([0.0, 1.0]), np.array([0.3, 0.3])) == 0.5


def test_auroc_of_one_class_is_not_a_number():
    assert np.isnan(auroc(np.ones(3), np.ones(3)))


@pytest.mark.parametrize("error", [ece, adaptive_ece, smooth_ece], ids=lambda f: f.__name__)
def test_a_calibrated_predictor_has_almost_no_error(error):
    assert error(*calibrated()) < 0.02


@pytest.mark.parametrize("error", [ece, adaptive_ece], ids=lambda f: f.__name__)
def test_a_constant_is_as_wrong_as_it_is_far_from_the_rate(error):
    y = np.array([1.0] * 30 + [0.0] * 70)
    assert error(y, np.full(100, 0.8)) == pytest.approx(0.5)


def test_smooth_ece_of_a_constant_is_near_its_distance_from_the_rate():
    y = np.array([1.0] * 30 + [0.0] * 70)
    assert smooth_ece(y, np.full(100, 0.8)) == pytest.approx(0.5, abs=0.02)


def test_smooth_ece_does_not_jump_at_a_bin_edge():
    y = np.array([1.0, 0.0] * 500)
    below, above = np.full(1000, 0.5 - 1e-4), np.full(1000, 0.5 + 1e-4)
    assert smooth_ece(y, below) == pytest.approx(smooth_ece(y, above), abs=1e-3)


def test_brier_is_the_mean_squared_error():
    assert brier(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == 0.25


def test_always_unsafe_scores_by_prevalence():
    report = classification_report(np.array([1.0, 1.0, 0.0, 0.0]), np.ones(4))
    assert report["f1_unsafe"] == pytest.approx(2 / 3)
    assert report["f1_safe"] == 0.0
    assert report["auroc"] == 0.5


def test_the_interval_holds_the_estimate():
    y, p = calibrated(400)
    low, high = bootstrap(y, p, rounds=200)
    assert low < auroc(y, p) < high
