"""An int8 copy of a graph: weights s8, activations u8 with ranges taken at run time."""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

__all__ = ["quantize"]


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
