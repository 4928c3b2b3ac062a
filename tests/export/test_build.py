import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from csrm_guard.artifact import Manifest
from csrm_guard.graphs import PackedGraph
from csrm_guard.guard import Guard
from csrm_guard.messages import Message
from csrm_guard.onnx_model import OnnxRewardModel
from csrm_guard.policy import Policy, Rule
from csrm_guard.rows import Row, parse_row
from csrm_guard_export.__main__ import app
from csrm_guard_export.build import _benign, _owner, build
from csrm_guard_export.onnx import export_onnx
from csrm_guard_export.parity import ParityError, require_fp32
from csrm_guard_export.parity import golden as inputs
from csrm_guard_train.checkpoint import Trained, load_checkpoint
from csrm_guard_train.predict import predict

# PyTorch's exporter and ONNX Runtime's quantizer warn about their own insides.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def out(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "model"
    build(checkpoint, folder, name="tiny")
    return folder


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> Trained:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def fp32_graph(checkpoint: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(load_checkpoint(checkpoint, attention="eager").model, path, trained.recipe.limits)
    return path


def packed(path: Path) -> PackedGraph:
    return PackedGraph(onnxruntime.InferenceSession(str(path)), 768)


def golden(trained: Trained):
    return inputs([parse_row(r, "here") for r in trained.held_out[:12]], trained.encoder)


def test_the_fp32_graph_agrees_with_torch(trained: Trained, fp32_graph: Path):
    assert require_fp32(trained.model, packed(fp32_graph), golden(trained)) <= 1e-4


def test_a_graph_of_other_weights_is_refused(trained: Trained, fp32_graph: Path):
    other = load_checkpoint_copy(trained)
    other.out.bias.data += 1.0
    with pytest.raises(ParityError, match="differ by"):
        require_fp32(other, packed(fp32_graph), golden(trained))


def load_checkpoint_copy(trained: Trained):
    import copy

    return copy.deepcopy(trained.model)


@pytest.mark.parametrize(("batch", "tokens", "rules"), [(1, 9, 1), (3, 200, 7), (2, 700, 40)])
def test_batch_tokens_and_rules_are_free(fp32_graph: Path, batch: int, tokens: int, rules: int):
    session = onnxruntime.InferenceSession(str(fp32_graph), providers=["CPUExecutionProvider"])
    blocks = np.ones((batch, tokens), np.int64)
    feed = {
        "ids": blocks * 5,
        "blocks": blocks,
        "positions": np.tile(np.arange(tokens) % 400, (batch, 1)),
        "heads": np.zeros((batch, rules), np.int64),
    }
    assert session.run(["logits"], feed)[0].shape == (batch, rules)


def test_the_runtime_scores_as_training_does(trained: Trained, out: Path, fp32_graph: Path):
    rows = [parse_row(r, "here") for r in trained.held_out[:8]]
    scores = predict(trained.model, trained.encoder, rows)
    model = OnnxRewardModel.load(out)
    c = model.manifest.calibration
    for row, score in zip(rows, scores, strict=True):
        if row.scope == "last message":
            verdict = Guard(row.policy, model).check(row.messages, row.stage)
            expected = 1 / (1 + np.exp(-(c.slope * score.logits.max() + c.intercept)))
            assert 1 - verdict.p_safe == pytest.approx(expected, abs=0.05)


def test_the_manifest_states_what_was_measured(out: Path):
    manifest = Manifest.model_validate_json((out / "manifest.json").read_bytes())
    assert manifest.parity["fp32_max_abs_logit_difference"] <= 1e-4
    assert {"verdict_agreement", "auroc_drop"} <= set(manifest.parity["int8"])
    assert {"method", "raw", "fitted", "cross_fitted", "cross_fitted_by_method"} == set(manifest.card["calibration"])
    assert manifest.calibration.rows == 48


def test_int8_takes_a_third_of_the_space_or_less(out: Path, fp32_graph: Path):
    assert (out / "model.onnx").stat().st_size * 3 < fp32_graph.stat().st_size


def test_a_failed_export_leaves_the_old_artifact(out: Path, checkpoint: Path, tmp_path: Path):
    broken = tmp_path / "checkpoint"
    broken.mkdir()
    before = (out / "manifest.json").read_bytes()
    result = CliRunner().invoke(app, [str(broken), str(out)])
    assert result.exit_code == 2
    assert (out / "manifest.json").read_bytes() == before


def test_the_command_prints_what_it_measured(checkpoint: Path, tmp_path: Path):
    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "fp32"), "--precision", "fp32"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parity"]["fp32_max_abs_logit_difference"] <= 1e-4


def held_out(key: str, *, label: bool, violated: tuple[str, ...] | None, scope: str = "last message") -> Row:
    policy = Policy(name="p", rules=(Rule(id="a", text="A."), Rule(id="b", text="B.")))
    return Row(key, policy, (Message("user", "Hi"),), "prompt", label, violated, scope)


@pytest.mark.parametrize(
    "keys",
    [
        ("a1-1-compliant", "a1-1-strict"),
        ("r-1-under-2", "r-1-under-3"),
        ("g-1-m0", "g-1-m3-kept"),
        ("t-harmful", "t-helps"),
    ],
)
def test_rows_made_from_one_source_have_one_owner(keys: tuple[str, str]):
    assert len({_owner(held_out(key, label=True, violated=None)) for key in keys}) == 1


def test_a_talk_and_its_alternatives_have_one_owner():
    rows = [held_out(key, label=True, violated=None, scope="any assistant turn") for key in ("k-1-alt0", "k-1-base1")]
    assert {_owner(row) for row in rows} == {"k-1"}


def test_quantiles_of_kept_rules_leave_out_rows_whose_broken_rules_nobody_knows():
    rows = [
        held_out("known", label=True, violated=("a",)),
        held_out("unknown", label=True, violated=None),
        held_out("safe", label=False, violated=None),
    ]
    kept, stages = _benign(rows, [np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0])])
    assert kept.tolist() == [2.0, 5.0, 6.0]
    assert stages == ["prompt"] * 3
