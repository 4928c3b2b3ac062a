from pathlib import Path

import numpy as np
import pytest
import torch

from csrm_guard.encoding import Window
from csrm_guard.graphs import SplitGraph
from csrm_guard.packing import collate, pack
from csrm_guard.prefixes import PrefixCache
from csrm_guard.sessions import load_session
from csrm_guard_export.nodes import can_split
from csrm_guard_export.ranges import Observed, choose, observe, quantize_weight
from csrm_guard_export.split import write_split
from csrm_guard_train.checkpoint import start
from csrm_guard_train.model import RuleReader
from csrm_guard_train.recipe import Recipe
from tests.tiny import make_backbone

pytestmark = pytest.mark.filterwarnings("ignore")
RULES = [(101, 30, 31, 102), (101, 40, 102), (101, 50, 51, 52, 102)]
WINDOWS = [Window((10, 11, 12), (20, 21, 22, 23), 0, 1), Window((), (8, 7), 0, 1), Window((9,) * 30, (8, 7), 0, 1)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> RuleReader:
    folder = tmp_path_factory.mktemp("split")
    model = start(Recipe(backbone="bert", dropout=0.0), make_backbone(folder / "bert", "bert")).model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:  # fresh weights are so small that every graph would agree
                weight.normal_(0.0, 0.3)
    return model


def graph(path: Path, prefix_bytes: int = 0) -> SplitGraph:
    return SplitGraph(load_session(path, None, ["CPUExecutionProvider"]), PrefixCache(prefix_bytes))


def torch_logits(model: RuleReader, window: Window) -> np.ndarray:
    batch = collate([pack(window, RULES)])
    with torch.no_grad():
        arrays = (batch.ids, batch.blocks, batch.positions, batch.heads)
        return model(*(torch.from_numpy(a) for a in arrays)).numpy()[0]


@pytest.mark.parametrize("window", WINDOWS, ids=["context", "none", "long"])
def test_the_split_graph_scores_as_torch_does(reader: RuleReader, window: Window, tmp_path: Path):
    write_split(reader, tmp_path / "model.onnx")
    expected = torch_logits(reader, window)
    assert expected.std() > 0.01
    assert np.abs(graph(tmp_path / "model.onnx").read(window, RULES) - expected).max() < 1e-4


def test_a_kept_prompt_scores_as_torch_does(reader: RuleReader, tmp_path: Path):
    write_split(reader, tmp_path / "model.onnx")
    kept = graph(tmp_path / "model.onnx", 1 << 20)
    for window in (WINDOWS[2], WINDOWS[2], Window(WINDOWS[2].context, (60, 61, 62), 0, 1)):
        found = kept.read(window, RULES, shared=True)
        assert np.abs(found - torch_logits(reader, window)).max() < 1e-4


def test_int8_of_a_row_does_not_depend_on_other_rules(reader: RuleReader, tmp_path: Path):
    seen = observe(reader, [collate([pack(window, RULES)]) for window in WINDOWS])
    write_split(reader, tmp_path / "model.onnx", seen)
    int8 = graph(tmp_path / "model.onnx")
    together = int8.read(WINDOWS[0], RULES)
    assert [int8.read(WINDOWS[0], [rule])[0] for rule in RULES] == pytest.approx(together.tolist(), abs=1e-5)
    exact = torch_logits(reader, WINDOWS[0])
    assert 0 < np.abs(together - exact).max() < exact.std()


@pytest.mark.parametrize("kind", ["mpnet", "llama"])
def test_other_backbones_are_traced(kind: str, tmp_path: Path):
    assert not can_split(start(Recipe(backbone=kind), make_backbone(tmp_path / kind, kind)).model)


@pytest.mark.parametrize("structure", ["conversation", "pairwise", "probes"])
def test_other_structures_are_traced(structure: str, tmp_path: Path):
    recipe = Recipe.model_validate({"backbone": "bert", "structure": structure})
    assert not can_split(start(recipe, make_backbone(tmp_path / "bert")).model)


def test_a_weight_is_quantized_per_row():
    weight = np.array([[1.0, -0.5], [0.01, 0.002]], np.float32)
    s8, scales = quantize_weight(weight)
    assert s8.tolist() == [[127, -64], [127, 25]]
    assert np.abs(s8 * scales[:, None] - weight).max() < 0.005


def test_an_outlying_channel_is_scaled_down_rather_than_cost_the_others_their_steps():
    random = np.random.default_rng(0)
    rows = random.normal(size=(256, 16)).astype(np.float32)
    rows[:, 3] *= 100.0
    weight = random.normal(size=(8, 16)).astype(np.float32)
    weight[:, 3] /= 100.0
    found = choose(Observed(rows.min(0), rows.max(0), [rows]), weight)
    assert found.factors[3] > 5 * np.median(found.factors)
