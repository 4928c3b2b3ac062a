import numpy as np
import pytest

from csrm_guard import OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.binding import Bound, captures, device_of
from csrm_guard.encoding import Window
from csrm_guard.graphs import SplitGraph
from csrm_guard.prefixes import PrefixCache

WINDOW, RULES = Window(tuple(range(2000, 2040)), (3000, 3001), 0, 0), [(101, 4000, 102), (101, 4001, 4002, 102)]


@pytest.mark.parametrize(
    ("providers", "device"),
    [
        (["CPUExecutionProvider"], None),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda"),
        ([("CUDAExecutionProvider", {"device_id": 0})], "cuda"),
        (["TensorrtExecutionProvider"], "cuda"),
        (["CPUExecutionProvider", "CUDAExecutionProvider"], None),
        ([], None),
    ],
)
def test_memory_is_the_first_providers(providers, device):
    assert device_of(providers) == device


@pytest.mark.parametrize(("value", "told"), [("1", True), (True, True), ("0", False), (0, False), (False, False)])
def test_graphs_are_captured_where_the_option_says_so(value, told):
    assert captures(["CPUExecutionProvider", ("CUDAExecutionProvider", {"enable_cuda_graph": value})]) is told


def test_nothing_is_captured_without_the_option():
    assert not captures(["CUDAExecutionProvider", ("TensorrtExecutionProvider", {})])


@pytest.mark.parametrize("prefix_bytes", [0, 1 << 24], ids=["no cache", "cache"])
def test_bound_memory_changes_nothing(default_model, prefix_bytes):
    session = OnnxRewardModel.load(DEFAULT_ARTIFACT)._session
    bound = SplitGraph(Bound(session, "cpu"), PrefixCache(prefix_bytes))
    plain = SplitGraph(session, PrefixCache(0)).read(WINDOW, RULES)
    assert np.abs(np.array([bound.read(WINDOW, RULES) for _ in range(3)]) - plain).max() < 1e-4
