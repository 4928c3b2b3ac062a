from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from csrm_guard.batched import BatchedGraph
from csrm_guard.binding import Bound
from csrm_guard.encoding import Window
from csrm_guard.graphs import SplitGraph
from csrm_guard.prefixes import PrefixCache
from csrm_guard_export.batched import write_batched
from csrm_guard_export.split import write_split
from csrm_guard_train.model import RuleReader
from tests.export.test_split import RULES, reader

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["reader"]  # the fixture is the split graph's
SHARED = tuple(range(200, 230))
WINDOWS = [
    Window((10, 11, 12), (20, 21, 22, 23), 0, 1),
    Window(SHARED, (8, 7), 0, 1),
    Window((), (8, 7), 0, 1),
    Window(SHARED, (20, 21, 22, 23, 24), 0, 1),
    Window(SHARED, (5,), 0, 1),
]


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def expected(reader: RuleReader, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    path = tmp_path_factory.mktemp("split") / "model.onnx"
    write_split(reader, path)
    split = SplitGraph(session(path), PrefixCache(0))
    return np.stack([split.read(window, RULES) for window in WINDOWS])


@pytest.fixture(scope="module")
def fp32(reader: RuleReader, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    write_batched(reader, path, half=False)
    return session(path)


@pytest.fixture(scope="module")
def fp16(reader: RuleReader, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("fp16") / "model.onnx"
    write_batched(reader, path, half=True)
    return session(path)


def error(graph: BatchedGraph, expected: np.ndarray) -> float:
    return float(np.abs(graph.read_all(WINDOWS, RULES) - expected).max())


@pytest.mark.parametrize("prefix_bytes", [0, 1 << 20], ids=["no cache", "cache"])
def test_windows_in_one_run_score_as_alone(fp32, expected, prefix_bytes):
    graph = BatchedGraph(fp32, PrefixCache(prefix_bytes))
    assert expected.std() > 0.01
    assert [error(graph, expected) < 1e-4 for _ in range(3)] == [True] * 3


def test_one_window_scores_as_among_others(fp32, expected):
    graph = BatchedGraph(fp32, PrefixCache(0))
    alone = np.stack([graph.read(window, RULES) for window in WINDOWS])
    assert np.abs(alone - expected).max() < 1e-4


def test_rounded_sizes_change_nothing(fp32, expected):
    assert error(BatchedGraph(fp32, PrefixCache(0), rounded=True), expected) < 1e-4


def test_fp16_stays_near_fp32(fp16, expected):
    assert 0 < error(BatchedGraph(fp16, PrefixCache(1 << 20)), expected) < 0.05


@pytest.mark.parametrize("capture", [False, True], ids=["bound", "kept per shape"])
def test_bound_memory_changes_nothing(fp16, capture):
    plain = BatchedGraph(fp16, PrefixCache(0), rounded=capture)
    bound = BatchedGraph(Bound(fp16, "cpu", capture=capture), PrefixCache(0), rounded=capture)
    for _ in range(3):
        assert np.array_equal(bound.read_all(WINDOWS, RULES), plain.read_all(WINDOWS, RULES))


def test_a_shape_that_was_bound_before_serves_other_tokens(fp32):
    bound = BatchedGraph(Bound(fp32, "cpu", capture=True), PrefixCache(0), rounded=True)
    plain = BatchedGraph(fp32, PrefixCache(0))
    for first in (30, 40, 50):
        window = Window((), tuple(range(first, first + 6)), 0, 1)
        assert np.abs(bound.read(window, RULES) - plain.read(window, RULES)).max() < 1e-5
