"""Sessions: equal scores on every CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from csrm_guard.sessions import load_session

MS = "com.microsoft"


def _product(path: Path, weight: np.ndarray) -> None:
    """Write a graph that multiplies u8 rows with an s8 weight, as the exporter writes it."""
    scales = {"a_scale": np.float32(1.0), "b_scale": np.ones(weight.shape[1], np.float32), "zero": np.uint8(0)}
    constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in {"b": weight, **scales}.items()]
    node = helper.make_node("MatMulIntegerToFloat", ["a", "b", "a_scale", "b_scale", "zero"], ["y"], domain=MS)
    rows, columns = weight.shape
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MS, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_products_of_eight_bits_are_summed_exactly_on_this_cpu(tmp_path: Path, sign: int) -> None:
    weight = np.full((384, 8), 127 * sign, np.int8)
    _product(tmp_path / "graph.onnx", weight)
    session = load_session(tmp_path / "graph.onnx", 1, ["CPUExecutionProvider"])
    rows = np.full((3, 384), 255, np.uint8)
    (found,) = session.run(None, {"a": rows})
    assert np.array_equal(found, rows.astype(np.float32) @ weight.astype(np.float32))
