from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from csrm_guard_train.average import app, average
from csrm_guard_train.checkpoint import CheckpointError, Trained, load_checkpoint, save_checkpoint, start
from csrm_guard_train.recipe import Recipe


@pytest.fixture
def two(untrained: Trained, tmp_path: Path) -> list[Path]:
    save_checkpoint(replace(untrained, card={"name": "one"}), tmp_path / "one")
    with torch.no_grad():
        for weight in untrained.model.parameters():
            weight.add_(1.0)
    save_checkpoint(replace(untrained, card={"name": "two"}), tmp_path / "two")
    return [tmp_path / "one", tmp_path / "two"]


def test_each_weight_is_the_mean(two: list[Path]):
    before = load_checkpoint(two[0]).model.state_dict()
    after = average(two).model.state_dict()
    for name, weight in before.items():
        if weight.is_floating_point():
            torch.testing.assert_close(after[name], weight + 0.5)


def test_the_card_lists_what_was_averaged(two: list[Path]):
    assert [card["name"] for card in average(two).card["averaged"]] == ["one", "two"]


def test_one_checkpoint_is_no_average(two: list[Path]):
    with pytest.raises(CheckpointError, match="two checkpoints"):
        average(two[:1])


def other(backbones: Path, name: str = "tiny", **change: object) -> Trained:
    recipe = Recipe.model_validate({"backbone": name, "dropout": 0.0, **change})
    return start(recipe, backbones / name)


@pytest.mark.parametrize(
    ("change", "said"), [({"seed": 1}, "seed"), ({"validation": 0.3}, "validation"), ({"structure": "probes"}, "")]
)
def test_checkpoints_of_other_splits_are_refused(
    two: list[Path], backbones: Path, tmp_path: Path, change: dict[str, object], said: str
):
    save_checkpoint(other(backbones, **change), tmp_path / "three")
    with pytest.raises(CheckpointError, match=f"three.*{said}"):
        average([two[0], tmp_path / "three"])


def test_another_backbone_is_refused(two: list[Path], backbones: Path, tmp_path: Path):
    save_checkpoint(other(backbones, "mpnet"), tmp_path / "three")
    with pytest.raises(CheckpointError, match="other weights"):
        average([two[0], tmp_path / "three"])


def test_the_command_writes_a_checkpoint(two: list[Path], tmp_path: Path):
    done = CliRunner().invoke(app, [str(tmp_path / "mean"), *map(str, two)])
    assert done.exit_code == 0, done.output
    assert load_checkpoint(tmp_path / "mean").card["averaged"]


def test_the_command_overwrites_nothing(two: list[Path]):
    done = CliRunner().invoke(app, [str(two[1]), *map(str, two)])
    assert done.exit_code == 2
    assert "exists already" in done.output
