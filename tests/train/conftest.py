"""Fixtures of training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from csrm_guard_train.checkpoint import Trained, start
from csrm_guard_train.data import Authored, read_authored
from csrm_guard_train.recipe import Recipe
from tests.tiny import make_authored, make_backbone


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    make_backbone(folder / "tiny")
    for kind in ("mpnet", "modernbert", "deberta-v2", "llama", "qwen2"):
        make_backbone(folder / kind, kind)
    return folder


@pytest.fixture(scope="session")
def authored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authored(tmp_path_factory.mktemp("authored") / "sets")


@pytest.fixture(scope="session")
def authored(authored_folder: Path) -> Authored:
    return read_authored(authored_folder)


@pytest.fixture
def untrained(backbones: Path) -> Trained:
    return start(Recipe(backbone="tiny", dropout=0.0), backbones / "tiny")
