import numpy as np
import pytest

from csrm_guard_export.calibrate import fit_calibration, report, split_benign


def sample(slope: float, intercept: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-(slope * z + intercept)))).astype(float)
    return z, y


def test_platt_recovers_slope_and_intercept():
    found = fit_calibration(*sample(0.5, -1.0), np.zeros(10))
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.intercept == pytest.approx(-1.0, abs=0.06)


def test_temperature_keeps_the_boundary():
    assert fit_calibration(*sample(0.5, -1.0), np.zeros(10), method="temperature").intercept == 0.0


def test_a_share_of_harmless_logits_reaches_the_stored_threshold():
    z, y = sample(1.0, 0.0)
    benign = np.random.default_rng(1).normal(-2, 1, 5_000)
    found = fit_calibration(z, y, benign)
    q = 1 / (1 + np.exp(-(found.slope * benign + found.intercept)))
    assert (q >= found.threshold_at(0.05)).mean() == pytest.approx(0.05, abs=0.005)


def test_calibration_lowers_the_error_of_an_overconfident_model():
    z, y = sample(0.3, 0.0)
    found = report(z, y, fit_calibration(z, y, z), [str(i) for i in range(len(z))])
    assert found["cross_fitted"]["ece"] < found["raw"]["ece"] / 3


def test_rows_of_one_owner_stay_in_one_half():
    # Each owner has a safe and an unsafe row; a split by row would fit each half on one class.
    z, y = np.zeros(400), np.tile([0.0, 1.0], 200)
    found = report(z, y, fit_calibration(z, y, z), [str(i // 2) for i in range(400)])
    assert found["cross_fitted"]["ece"] < 0.01


def test_violated_rules_are_not_benign():
    found = split_benign([(np.array([1.0, 2.0]), ("a", "b"), frozenset({"b"}))])
    assert found.tolist() == [1.0]
