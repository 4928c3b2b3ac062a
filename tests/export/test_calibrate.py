import numpy as np
import pytest

from csrm_guard_export.calibrate import best_method, fit_calibration, report


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


def bent(n: int = 6_000) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose risk stays at .2, then at .7: no line in z fits that."""
    z = np.random.default_rng(2).uniform(-6, 6, n)
    y = (np.random.default_rng(3).random(n) < np.where(z < 2, 0.2, 0.7)).astype(float)
    return z, y


def test_isotonic_follows_a_step_that_platt_cannot():
    z, y = bent()
    found = report(z, y, fit_calibration(z, y, z, method="isotonic"), [str(i) for i in range(len(z))])
    by_method = found["cross_fitted_by_method"]
    assert by_method["isotonic"]["smece"] < 0.02 < by_method["platt"]["smece"]


def test_isotonic_keeps_every_order():
    z, y = bent(2_000)
    found = fit_calibration(z, y, z, method="isotonic").q(np.sort(np.unique(z)))
    assert (np.diff(found) > 0).all()


def test_the_best_method_is_the_one_that_fits():
    z, y = bent()
    assert best_method(z, y, [str(i) for i in range(len(z))]) == "isotonic"


def test_each_stage_with_enough_rows_gets_its_own_curve():
    z, y = sample(1.0, 0.0, 4_000)
    moved = (np.random.default_rng(5).random(4_000) < 1 / (1 + np.exp(-(z + 2)))).astype(float)
    both = fit_calibration(
        np.concatenate([z, z]), np.concatenate([y, moved]), z, stages=["response"] * 4_000 + ["prompt"] * 4_000
    )
    assert both.curve("prompt").intercept == pytest.approx(2.0, abs=0.2)
    assert both.curve("response").intercept == pytest.approx(0.0, abs=0.2)


def test_a_stage_with_few_rows_follows_the_common_curve():
    z, y = sample(1.0, 0.0, 4_000)
    found = fit_calibration(z, y, z, stages=["response"] * 3_950 + ["prompt"] * 50)
    assert set(found.stages) == {"response"}
