"""Copies of a traced graph: int8 (weights s8, activations u8 with ranges taken at run time), and fp16."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

__all__ = ["halve", "quantize"]


def quantize(source: Path, target: Path) -> None:
    """Write the int8 graph.

    s8 weights against u8 activations is the pair that CPUs multiply fastest (VNNI); attention's
    own products stay in fp32, since both of their sides change with the input.
    """
    quantize_dynamic(
        str(source),
        str(target),
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
    )


def halve(source: Path, target: Path) -> None:
    """Write the fp16 graph; inputs and logits stay as they are."""
    onnx.save(convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(target))
