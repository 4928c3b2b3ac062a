"""From raw violation logits to probabilities: monotone curves, one for all stages or one for each.

A curve never changes the order of scores, so that a reward ranks as the model does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from csrm_guard.messages import Stage

__all__ = ["Calibration", "Curve", "Method"]

Floats: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["temperature", "platt", "isotonic"]


class Curve(BaseModel):
    """One rising map from a raw logit z to a calibrated one.

    Attributes:
        method: `temperature` (slope * z), `platt` (slope * z + intercept), or `isotonic` (straight
            lines through the knots, and on with the slope beyond them).
        slope: above 0.
        intercept: moves the boundary.
        knots: (z, calibrated logit), both rising; for `isotonic` at least two.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "platt"
    slope: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    intercept: float = Field(default=0.0, allow_inf_nan=False)
    knots: tuple[tuple[float, float], ...] = ()

    @model_validator(mode="after")
    def _rising(self) -> Curve:
        if self.method == "isotonic" and len(self.knots) < 2:
            raise ValueError("knots: an isotonic curve needs at least two")
        if self.method != "isotonic" and self.knots:
            raise ValueError(f"knots: a {self.method} curve has none")
        if not all(math.isfinite(value) for knot in self.knots for value in knot):
            raise ValueError("knots: every value must be finite")
        if any(not (a[0] < b[0] and a[1] < b[1]) for a, b in pairwise(self.knots)):
            raise ValueError("knots: z and the calibrated logit must both rise")
        return self

    def logits(self, z: Floats) -> Floats:
        """Return the calibrated logits of raw ones, of the same shape."""
        if not self.knots:
            return self.slope * z + self.intercept
        x, y = np.array(self.knots).T
        return self._through(z, x, y, self.slope)

    def raw(self, logits: Floats) -> Floats:
        """Return the raw logits that have these calibrated ones: the inverse of `logits`."""
        if not self.knots:
            return (logits - self.intercept) / self.slope
        x, y = np.array(self.knots).T
        return self._through(logits, y, x, 1.0 / self.slope)

    @staticmethod
    def _through(at: Floats, x: Floats, y: Floats, slope: float) -> Floats:
        beyond = np.minimum(at - x[0], 0.0) + np.maximum(at - x[-1], 0.0)
        found: Floats = np.interp(at, x, y) + slope * beyond
        return found


class Calibration(Curve):
    """How raw violation logits become probabilities, and what harmless rows reach.

    Attributes:
        stages: curves of their own for messages of a stage; the others follow the common one.
        benign: pairs (false-positive rate, q that this share of harmless rows reaches).
        rows: how many held-out rows it was fitted on.
    """

    stages: Mapping[Stage, Curve] = {}
    benign: tuple[tuple[float, float], ...] = ()
    rows: int = 0

    @model_validator(mode="after")
    def _falling(self) -> Calibration:
        rates = [rate for rate, _ in self.benign]
        if rates != sorted(set(rates)) or any(not 0 < rate < 1 for rate in rates):
            raise ValueError("benign: rates must rise and lie between 0 and 1")
        if any(not 0 <= q <= 1 for _, q in self.benign):  # NaN as well: no q would ever reach it
            raise ValueError("benign: every q must lie between 0 and 1")
        return self

    def curve(self, stage: Stage | None = None) -> Curve:
        """Return the curve of a stage: its own, or the common one."""
        return self.stages.get(stage, self) if stage else self

    def q(self, z: Floats, stage: Stage | None = None) -> Floats:
        """Return violation probabilities of raw logits, of the same shape."""
        found: Floats = 1.0 / (1.0 + np.exp(-self.curve(stage).logits(z)))
        return found

    def threshold_at(self, fpr: float) -> float:
        """Return the q that a share `fpr` of harmless rows reaches, between the stored rates.

        Raises:
            ValueError: outside the stored rates; the message names them.
        """
        if not self.benign or not self.benign[0][0] <= fpr <= self.benign[-1][0]:
            known = f"{self.benign[0][0]} to {self.benign[-1][0]}" if self.benign else "none"
            raise ValueError(f"fpr {fpr} is outside the stored rates ({known})")
        for (low, q_low), (high, q_high) in pairwise(self.benign):
            if low <= fpr <= high:
                share = (math.log(fpr) - math.log(low)) / (math.log(high) - math.log(low))
                return q_low + share * (q_high - q_low)
        return self.benign[-1][1]
