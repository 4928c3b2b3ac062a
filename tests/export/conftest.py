"""A tiny model, trained for a moment and exported once for all export tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from csrm_guard_train.augment import Augmenter
from csrm_guard_train.checkpoint import load_checkpoint, save_checkpoint, start
from csrm_guard_train.data import read_authored
from csrm_guard_train.loop import train
from csrm_guard_train.recipe import Mixture, Recipe
from csrm_guard_train.validation import rows_to_jsonl, validation_rows
from tests.tiny import make_authored, make_backbone


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    authored = read_authored(make_authored(folder / "sets"))
    recipe = Recipe(backbone="tiny", epochs=0.5, step_tokens=4096, lr=2e-3, dropout=0.0, mixture=Mixture(checkable=1))
    trained = start(recipe, make_backbone(folder / "tiny"))
    train(trained, Augmenter(authored, recipe.mixture), [], folder / "run")
    rows = validation_rows(authored, 0)
    random.Random(0).shuffle(rows)
    trained.held_out.extend(rows_to_jsonl(rows[:48]))
    save_checkpoint(trained, folder / "run" / "checkpoint")
    assert load_checkpoint(folder / "run" / "checkpoint").held_out
    return folder / "run" / "checkpoint"
