"""What the inputs of a model's linear layers look like, and how each is best cut to eight bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csrm_guard.packing import Batch
from csrm_guard_export.onnx import INPUTS
from csrm_guard_train.model import RuleReader

__all__ = ["Observed", "Scaling", "choose", "observe", "quantize_weight"]

Floats = NDArray[np.float32]
# Shares of the spread that move from an input to its weights (Xiao et al. 2022, SmoothQuant: alpha).
_SHARES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SAMPLE = 512


@dataclass(slots=True)
class Observed:
    """The inputs of one linear layer: per channel the smallest and the largest, and some rows of them (N, in)."""

    low: Floats
    high: Floats
    rows: list[Floats] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scaling:
    """How an input becomes u8: divided by `factors` (in,) per channel, then by `scale`, plus `zero`.

    All of it is fixed at export, so that what a token becomes never depends on the tokens beside it: a rule alone, a
    batch and a cached prompt give equal scores.
    """

    factors: Floats
    scale: np.float32
    zero: np.uint8


def observe(model: RuleReader, batches: Iterable[Batch]) -> dict[str, Observed]:
    """Return what each linear layer of the backbone was given, by the layer's name."""
    found: dict[str, Observed] = {}
    random = np.random.default_rng(0)

    def watch(name: str, values: Tensor) -> None:
        rows = values.detach().reshape(-1, values.shape[-1]).numpy()
        low, high = rows.min(0), rows.max(0)
        seen = found.setdefault(name, Observed(low, high))
        seen.low, seen.high = np.minimum(seen.low, low), np.maximum(seen.high, high)
        seen.rows.append(rows[random.integers(0, len(rows), 8)])

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0]))  # type: ignore[misc]
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.Linear)
    ]
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(*(torch.from_numpy(getattr(batch, name)) for name in INPUTS))
    for hook in hooks:
        hook.remove()
    return found


def choose(seen: Observed, weight: Floats) -> Scaling:
    """Return the scaling under which u8 inputs and s8 weights (out, in) come closest to the layer's own output."""
    rows = np.concatenate(seen.rows)[-_SAMPLE:]
    exact = rows @ weight.T
    candidates = [_scaling(seen, weight, share) for share in _SHARES]
    errors = [float(np.square(_simulated(rows, weight, s) - exact).mean()) for s in candidates]
    return candidates[int(np.argmin(errors))]


def _scaling(seen: Observed, weight: Floats, share: float) -> Scaling:
    spread = np.maximum(np.maximum(-seen.low, seen.high), 1e-3)
    against = np.maximum(np.abs(weight).max(0), 1e-5)
    factors = spread**share / against ** (1.0 - share) if share else np.ones_like(spread)
    factors /= np.exp(np.log(factors).mean())
    low, high = min(float((seen.low / factors).min()), 0.0), max(float((seen.high / factors).max()), 0.0)
    scale = max(high - low, 1e-6) / 255.0
    return Scaling(factors.astype(np.float32), np.float32(scale), np.uint8(round(-low / scale)))


def _simulated(rows: Floats, weight: Floats, s: Scaling) -> Floats:
    u8 = np.clip(np.round(rows / s.factors / s.scale) + s.zero, 0, 255)
    s8, columns = quantize_weight(weight * s.factors)
    found: Floats = ((u8 - s.zero) @ s8.T.astype(np.float32)) * s.scale * columns
    return found


def quantize_weight(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return a weight (out, in) as s8 with one scale per row."""
    scales = np.maximum(np.abs(weight).max(1), 1e-9) / 127.0
    return np.clip(np.round(weight / scales[:, None]), -127, 127).astype(np.int8), scales.astype(np.float32)
