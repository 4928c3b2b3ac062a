from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from csrm_guard.rows import parse_row
from csrm_guard_export.__main__ import app
from csrm_guard_export.nodes import matches, quantizable
from csrm_guard_export.parity import ParityError, require_fp16
from csrm_guard_export.reduction import observed, to_int8
from csrm_guard_export.sensitivity import Effect, layers, parts, sensitivity, worst_first
from csrm_guard_export.split import write_split
from csrm_guard_train.checkpoint import Trained, load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> Trained:
    return load_checkpoint(checkpoint, attention="eager")


@pytest.fixture(scope="module")
def rows(trained: Trained):
    return [parse_row(row, "here") for row in trained.held_out[:12]]


def products(path: Path) -> int:
    return sum(node.op_type == "MatMulIntegerToFloat" for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*", True),
        ("encoder.layer.1.*", True),
        ("encoder.layer.*.output.dense", True),
        ("encoder.layer.1.output.dense", True),
        ("encoder.layer.11.*", False),
        ("encoder.layer.*.attention.output.dense", False),
        ("encoder.layer.*", True),
    ],
)
def test_a_pattern_means_whole_parts_of_a_name(pattern: str, meant: bool):
    assert matches("encoder.layer.1.output.dense", pattern) is meant


def test_every_part_means_something_and_together_they_mean_all(trained: Trained):
    names = quantizable(trained.model)
    for part in parts(names):
        assert any(matches(name, part) for name in names), part
    assert len(layers(names)) == trained.model.config.num_hidden_layers


def test_a_kept_layer_has_no_int8_products(trained: Trained, rows, tmp_path: Path):
    seen = observed(trained, rows)
    write_split(trained.model, tmp_path / "all.onnx", seen)
    write_split(trained.model, tmp_path / "kept.onnx", seen, ["encoder.layer.0.*"])
    assert products(tmp_path / "kept.onnx") == products(tmp_path / "all.onnx") - 6


def test_only_what_is_cut_changes_logits(trained: Trained, rows):
    seen = observed(trained, rows)
    nothing, words, everything = sensitivity(trained, rows, seen, wanted=["none", "embeddings.*", "*"])
    assert nothing.largest == 0.0
    assert words.mean > 0
    assert everything.mean > 0


def test_the_worst_comes_first():
    assert worst_first([Effect("a", 0.1, 1, 0), Effect("b", 0.3, 1, 0), Effect("c", 0.2, 1, 0)]) == ["b", "c", "a"]


def test_layers_stay_in_fp32_until_int8_costs_little(trained: Trained, rows, tmp_path: Path):
    y = [float(bool(row.label)) for row in rows]
    exact = [np.array([label]) for label in y]
    wrong = [np.array([-label]) for label in y]
    answers = iter([wrong, exact])
    said: list[str] = []
    _, found = to_int8(
        trained, rows, tmp_path / "none", tmp_path / "model.onnx",
        keep=["embeddings.*"], exact=exact, score=lambda: next(answers), say=said.append,
    )  # fmt: skip
    kept = found["kept_in_fp32"]
    assert kept[0] == "embeddings.*"
    assert kept[1] in layers(quantizable(trained.model))
    assert any("WARNING: int8 costs" in line for line in said)


def test_int8_that_costs_too_much_whatever_is_kept_is_refused(trained: Trained, rows, tmp_path: Path):
    y = [float(bool(row.label)) for row in rows]
    exact, wrong = [np.array([label]) for label in y], [np.array([-label]) for label in y]
    with pytest.raises(ParityError, match=r"int8 costs .* whatever stays in fp32; use fp32"):
        to_int8(
            trained, rows, tmp_path / "none", tmp_path / "model.onnx",
            keep=(), exact=exact, score=lambda: wrong, say=lambda line: None,
        )  # fmt: skip


def test_fp16_that_moves_q_is_refused():
    with pytest.raises(ParityError, match="fp16 graph's q differ by"):
        require_fp16([np.array([0.5])], [np.array([0.52])])


def test_fp16_that_is_no_number_is_refused():
    with pytest.raises(ParityError):
        require_fp16([np.array([0.5])], [np.array([np.nan])])


def test_an_fp16_directory_scores_on_a_cpu_too(checkpoint: Path, tmp_path: Path):
    from csrm_guard import Guard, OnnxRewardModel

    result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "fp16"), "--precision", "fp16"])
    assert result.exit_code == 0, result.output
    model = OnnxRewardModel.load(tmp_path / "fp16")
    assert (model.manifest.precision, model.manifest.layout) == ("fp16", "batched")
    assert model.manifest.parity["fp16_max_abs_q_difference"] <= 1e-2
    verdicts = Guard("support-desk", model).score(["Hello.", "I promise you a refund. " * 120, "Hello."])
    assert verdicts[0].p_safe == pytest.approx(verdicts[2].p_safe, abs=1e-3)
    assert verdicts[1].coverage.windows > 1
