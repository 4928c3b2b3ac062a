"""A teacher's logits as soft labels."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from csrm_guard.messages import Message
from csrm_guard_train.__main__ import app
from csrm_guard_train.batches import Encoded, encode
from csrm_guard_train.checkpoint import Trained, save_checkpoint, start
from csrm_guard_train.distil import Teacher, soft
from csrm_guard_train.groups import Example, Group, LabelledRule
from csrm_guard_train.recipe import Recipe
from tests.tiny import make_recipe

CPU = torch.device("cpu")


def make_group(key: str, *rules: str) -> Group:
    said = (Message("user", "Is it open?"), Message("assistant", f"Yes, {key}."))
    return Group(key, (Example((said,), tuple(LabelledRule(text, False, key) for text in rules)),))


def encoded(trained: Trained, *groups: Group) -> list[Encoded]:
    return [row for row in (encode(group, trained.encoder) for group in groups) if row is not None]


def test_equal_logits_cost_the_entropy_and_others_more():
    teacher = torch.tensor([2.0, -1.0])
    assert soft(teacher, teacher) < soft(teacher + 1.0, teacher)


def test_labels_without_a_teacher_count_for_nothing():
    teacher = torch.tensor([2.0, float("nan")])
    assert soft(torch.tensor([0.0, 9.0]), teacher) == soft(torch.tensor([0.0]), teacher[:1])


def test_labels_without_any_teacher_cost_nothing():
    assert float(soft(torch.tensor([3.0]), torch.tensor([float("nan")]))) == 0.0


def test_each_label_gets_its_own_logit(untrained: Trained):
    teacher = Teacher(untrained, CPU, torch.float32)
    both = encoded(untrained, make_group("a", "no slang", "be brief"), make_group("b", "no slang"))
    apart = torch.cat([teacher.logits([row]) for row in both])
    assert both[0].group.id == "a"
    assert torch.allclose(teacher.logits(both), apart, atol=1e-6)
    assert len(apart) == 3


def test_a_teacher_may_have_another_vocabulary(untrained: Trained, backbones: Path):
    other = start(Recipe(backbone="mpnet", dropout=0.0), backbones / "mpnet")
    rows = encoded(untrained, make_group("a", "no slang", "be brief"))
    assert Teacher(other, CPU, torch.float32).logits(rows).shape == (2,)


def test_a_group_that_does_not_fit_the_teacher_has_no_soft_labels(untrained: Trained):
    rows = encoded(untrained, make_group("a", "no slang"))
    long = make_group("b", *(["a rule of very many words " * 200] * 2))
    rows.append(Encoded(long, rows[0].sequences, rows[0].parts))
    found = Teacher(untrained, CPU, torch.float32).logits(rows)
    assert found.isnan().tolist() == [False, True, True]


@pytest.fixture
def checkpoint(untrained: Trained, tmp_path: Path) -> Path:
    save_checkpoint(untrained, tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.slow
def test_a_run_learns_from_its_teacher(
    backbones: Path, authored_folder: Path, checkpoint: Path, untrained: Trained, tmp_path: Path
):
    recipe = make_recipe(
        tmp_path / "r.toml",
        epochs=0.3,
        distil=1.0,
        validation=untrained.recipe.validation,
        list_weight=0,
        pair_weight=0,
    )
    args = [str(recipe), "--backbones", str(backbones), "--data", str(authored_folder), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*args, "--teacher", str(checkpoint)])
    assert result.exit_code == 0, result.output
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps[0]["soft"] > 0
    assert all(step["loss"] == step["soft"] for step in steps if "loss" in step)


@pytest.mark.parametrize("distil", [0.0, 0.5])
def test_teacher_and_recipe_belong_together(
    backbones: Path, authored_folder: Path, checkpoint: Path, tmp_path: Path, distil: float
):
    recipe = make_recipe(tmp_path / "r.toml", distil=distil)
    args = [str(recipe), "--backbones", str(backbones), "--data", str(authored_folder), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, args if distil else [*args, "--teacher", str(checkpoint)])
    assert result.exit_code == 2
    assert "belong together" in result.output


def test_a_teacher_that_saw_the_held_out_rows_is_refused(
    backbones: Path, authored_folder: Path, checkpoint: Path, tmp_path: Path
):
    recipe = make_recipe(tmp_path / "r.toml", distil=0.5, seed=9)
    args = [str(recipe), "--backbones", str(backbones), "--data", str(authored_folder), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*args, "--teacher", str(checkpoint)])
    assert result.exit_code == 2
    assert "held-out rows leak" in result.output
