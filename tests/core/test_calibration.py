"""Calibration curves: rising, per stage, and the thresholds of harmless rows."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from csrm_guard.calibration import Calibration, Curve

CURVE = Calibration(benign=((0.001, 0.9), (0.01, 0.7), (0.1, 0.3)))
BENT = Curve(method="isotonic", slope=0.5, knots=((-2.0, -1.0), (0.0, 0.0), (1.0, 3.0)))


def test_a_platt_curve_is_a_line():
    assert Curve(slope=2.0, intercept=1.0).logits(np.array([0.0, 3.0])).tolist() == [1.0, 7.0]


def test_an_isotonic_curve_goes_through_its_knots_and_on_beyond_them():
    assert BENT.logits(np.array([-4.0, -2.0, -1.0, 0.5, 1.0, 3.0])).tolist() == [-2.0, -1.0, -0.5, 1.5, 3.0, 4.0]


@pytest.mark.parametrize("curve", [BENT, Curve(slope=0.3, intercept=-2.0)], ids=["isotonic", "platt"])
def test_raw_undoes_logits(curve):
    z = np.linspace(-9, 9, 41)
    assert curve.raw(curve.logits(z)) == pytest.approx(z)


def test_no_curve_changes_the_order():
    assert (np.diff(BENT.logits(np.linspace(-9, 9, 400))) > 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "isotonic"}, "at least two"),
        ({"method": "platt", "knots": ((0, 0), (1, 1))}, "has none"),
        ({"method": "isotonic", "knots": ((0, 0), (1, 0))}, "must both rise"),
        ({"method": "isotonic", "knots": ((1, 0), (0, 1))}, "must both rise"),
        ({"method": "isotonic", "knots": ((0, 0), (1, math.nan))}, "finite"),
        ({"slope": 0.0}, "greater than 0"),
    ],
)
def test_a_curve_that_could_reorder_scores_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Curve(**fields)


def test_a_stage_with_a_curve_of_its_own_uses_it():
    c = Calibration(slope=1.0, stages={"prompt": Curve(slope=1.0, intercept=math.log(3))})
    assert c.q(np.array([0.0]), "prompt")[0] == pytest.approx(0.75)
    assert c.q(np.array([0.0]), "response")[0] == c.q(np.array([0.0]))[0] == 0.5


@pytest.mark.parametrize(("fpr", "q"), [(0.001, 0.9), (0.01, 0.7), (0.1, 0.3)])
def test_a_stored_rate_gives_its_q(fpr, q):
    assert CURVE.threshold_at(fpr) == pytest.approx(q)


def test_between_stored_rates_q_is_interpolated_over_the_logarithm():
    assert CURVE.threshold_at(10**-2.5) == pytest.approx(0.8)
    assert CURVE.threshold_at(10**-1.5) == pytest.approx(0.5)


def test_a_lower_rate_never_gives_a_lower_threshold():
    found = [CURVE.threshold_at(0.001 * 1.1**i) for i in range(48)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("fpr", [0.0001, 0.5])
def test_a_rate_outside_the_stored_ones_is_refused_with_them(fpr):
    with pytest.raises(ValueError, match=rf"fpr {fpr} is outside the stored rates \(0\.001 to 0\.1\)"):
        CURVE.threshold_at(fpr)


def test_a_model_without_quantiles_says_so():
    with pytest.raises(ValueError, match=r"outside the stored rates \(none\)"):
        Calibration().threshold_at(0.01)


def test_one_stored_rate_answers_itself():
    assert Calibration(benign=((0.01, 0.7),)).threshold_at(0.01) == 0.7


@pytest.mark.parametrize(
    "benign",
    [
        ((0.1, 0.3), (0.01, 0.7)),
        ((0.1, 0.3), (0.1, 0.2)),
        ((0.0, 0.3),),
        ((1.0, 0.3),),
        ((0.1, math.nan),),
        ((0.1, 2.0),),
    ],
    ids=["falling", "twice", "zero", "one", "nan q", "large q"],
)
def test_wrong_quantiles_are_refused(benign):
    with pytest.raises(ValidationError, match="benign: "):
        Calibration(benign=benign)
