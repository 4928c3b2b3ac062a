"""A checkpoint from an exported model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from csrm_guard.artifact import read_manifest, write_manifest
from csrm_guard.onnx_model import OnnxRewardModel
from csrm_guard.packing import collate, pack
from csrm_guard.rows import parse_row
from csrm_guard_export.build import build
from csrm_guard_export.parity import golden
from csrm_guard_export.restore import app, restore
from csrm_guard_train.__main__ import app as train_app
from csrm_guard_train.checkpoint import CheckpointError, Trained, load_checkpoint, save_checkpoint
from tests.tiny import make_authored

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> Trained:
    """A model all of whose weights, biases too, are far from 0 and from each other."""
    found = load_checkpoint(checkpoint)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in found.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return replace(found, card={"recipe": json.loads(found.recipe.model_dump_json()), "name": "mine"})


@pytest.fixture(scope="module")
def folders(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("restore")
    save_checkpoint(trained, folder / "checkpoint")
    for precision in ("fp32", "int8"):
        build(folder / "checkpoint", folder / precision, precision=precision, name="tiny")
    return {name: folder / name for name in ("fp32", "int8")}


def test_an_fp32_export_gives_back_every_weight(trained: Trained, folders: dict[str, Path]):
    found, expected = restore(folders["fp32"]).model.state_dict(), trained.model.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_an_int8_export_gives_back_a_model_that_scores_as_its_graph_does(trained: Trained, folders: dict[str, Path]):
    graph, model = OnnxRewardModel.load(folders["int8"]).graph, restore(folders["int8"]).model
    rows = [parse_row(row, "here") for row in trained.held_out[:12]]
    ours, theirs = [], []
    for window, rules in golden(rows, trained.encoder):
        batch = collate([pack(window, rules)])
        arrays = (batch.ids, batch.blocks, batch.positions, batch.heads)
        with torch.no_grad():
            ours.append(model(*(torch.from_numpy(a) for a in arrays))[0])
        theirs.append(graph.read(window, rules))
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    assert np.abs(ours - theirs).mean() < 0.1 * theirs.std()


def test_what_an_int8_export_divided_is_shared_out_evenly(folders: dict[str, Path]):
    weights = restore(folders["int8"]).model.state_dict()
    at = "backbone.encoder.layer.0.attention."
    ratio = weights[f"{at}output.dense.weight"].norm(dim=0) / weights[f"{at}self.value.weight"].norm(dim=1)
    assert ratio.std() < 1e-3 * ratio.mean()


def test_training_goes_on_from_it(folders: dict[str, Path], tmp_path: Path):
    assert CliRunner().invoke(app, [str(folders["int8"]), str(tmp_path / "checkpoint")]).exit_code == 0
    recipe = json.loads((tmp_path / "checkpoint" / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "epochs": 0.1}))
    sets = make_authored(tmp_path / "sets")
    command = [tmp_path / "recipe.json", "--data", sets, "--init", tmp_path / "checkpoint", "--out", tmp_path / "run"]
    done = CliRunner().invoke(train_app, [str(part) for part in command])
    assert done.exit_code == 0, done.output
    card = load_checkpoint(tmp_path / "run" / "checkpoint").card
    assert card["started_from"]["restored_from"]["id"] == read_manifest(folders["int8"]).id


def test_a_restored_checkpoint_cannot_be_exported_before_it_is_trained(folders: dict[str, Path], tmp_path: Path):
    save_checkpoint(restore(folders["fp32"]), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="no held-out rows"):
        build(tmp_path / "checkpoint", tmp_path / "out")


def changed(folder: Path, to: Path, **change: object) -> Path:
    shutil.copytree(folder, to)
    write_manifest(to, read_manifest(to).model_copy(update=change))
    return to


def test_another_layout_is_refused(folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(CheckpointError, match="layout packed"):
        restore(changed(folders["fp32"], tmp_path / "packed", layout="packed"))


def test_a_model_without_its_recipe_is_refused(folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(CheckpointError, match="no `recipe`"):
        restore(changed(folders["fp32"], tmp_path / "bare", card={}))


def test_a_checkpoint_is_never_overwritten(folders: dict[str, Path], tmp_path: Path):
    done = CliRunner().invoke(app, [str(folders["fp32"]), str(tmp_path)])
    assert done.exit_code == 2
    assert "exists already" in done.output
