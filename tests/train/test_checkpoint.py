from pathlib import Path

import pytest
import torch

from csrm_guard_train.checkpoint import CheckpointError, Trained, find_backbone, load_checkpoint, save_checkpoint


def test_a_saved_model_scores_the_same(untrained: Trained, tmp_path: Path):
    save_checkpoint(untrained, tmp_path / "c")
    loaded = load_checkpoint(tmp_path / "c")
    for ours, theirs in zip(untrained.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_later_save_replaces_the_earlier_one(untrained: Trained, tmp_path: Path):
    save_checkpoint(untrained, tmp_path / "c", resume={"x": torch.zeros(1)})
    save_checkpoint(untrained, tmp_path / "c")
    assert not (tmp_path / "c" / "resume.pt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "recipe.json", "held_out.jsonl"])
def test_a_missing_file_is_named(untrained: Trained, tmp_path: Path, name: str):
    save_checkpoint(untrained, tmp_path / "c")
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(tmp_path / "c")


def test_a_missing_backbone_says_which_option_to_give(tmp_path: Path):
    with pytest.raises(CheckpointError, match="--backbones"):
        find_backbone("minilm-l6", tmp_path)
