"""Two CPU processes, started as a launcher starts them, train one model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csrm_guard_train.checkpoint import load_checkpoint
from tests.tiny import ROOT, make_authored, make_backbone, make_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    make_backbone(folder / "backbones" / "tiny")
    make_authored(folder / "sets")
    make_recipe(folder / "recipe.toml", epochs=0.3, precision="float32", head_lr=0.05)
    return folder


def launch(place: Path, out: str, *more: str, shard: bool) -> dict[str, torch.Tensor]:
    paths = [str(ROOT), str(ROOT / "train"), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": str(shard).lower()}
    # What `accelerate launch` starts for several processes, which it does for GPUs only.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "csrm_guard_train", str(place / "recipe.toml"), "--data", str(place / "sets")]
    command += ["--backbones", str(place / "backbones"), "--out", str(place / out), *more]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_checkpoint(place / out / "checkpoint").model.state_dict()


@pytest.fixture(scope="module")
def replicated(place: Path) -> dict[str, torch.Tensor]:
    return launch(place, "replicated", shard=False)


@pytest.fixture(scope="module")
def sharded(place: Path) -> dict[str, torch.Tensor]:
    return launch(place, "sharded", shard=True)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(value, theirs[name], atol=1e-5) for name, value in ours.items())


def test_sharding_trains_the_model_that_replicating_does(replicated, sharded):
    assert same(replicated, sharded)


def test_two_processes_share_each_step(place: Path, replicated):
    lines = [json.loads(line) for line in (place / "replicated" / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))
    card = json.loads((place / "replicated" / "checkpoint" / "card.json").read_text())
    assert card["training"]["processes"] == 2


def test_a_sharded_run_resumes_where_it_stopped(place: Path, sharded):
    half = launch(place, "parts", "--stop-after", "0", shard=True)
    assert not same(half, sharded)
    assert same(launch(place, "parts", shard=True), sharded)
