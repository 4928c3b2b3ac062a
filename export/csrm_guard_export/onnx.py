"""Trace the model to ONNX with dynamic batch, tokens and rules."""

from __future__ import annotations

from pathlib import Path

import torch

from csrm_guard.encoding import Limits
from csrm_guard_train.model import RuleReader

__all__ = ["INPUTS", "OPSET", "export_onnx"]

INPUTS = ("ids", "blocks", "positions", "heads")
OPSET = 18


def export_onnx(model: RuleReader, path: Path, limits: Limits) -> None:
    """Write the fp32 graph; inputs int64 ids, blocks, positions (B, T), heads (B, R) -> logits (B, R)."""
    model.eval()
    batch, length, rules = 2, 48, 3
    blocks = torch.zeros(batch, length, dtype=torch.long)
    blocks[:, 10:20] = 1
    for k in range(rules):
        blocks[:, 20 + 8 * k : 28 + 8 * k] = 2 + k
    blocks[1, 44:] = -1
    ids = torch.ones(batch, length, dtype=torch.long)
    positions = torch.arange(length).expand(batch, length).contiguous()
    heads = torch.tensor([[20, 28, 36]] * batch)
    b, t, r = (
        torch.export.Dim("batch", min=1, max=4096),
        torch.export.Dim("tokens", min=8, max=4096),
        torch.export.Dim("rules", min=1, max=1024),
    )
    shapes = {"ids": {0: b, 1: t}, "blocks": {0: b, 1: t}, "positions": {0: b, 1: t}, "heads": {0: b, 1: r}}
    program = torch.onnx.export(
        model,
        (ids, blocks, positions, heads),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
