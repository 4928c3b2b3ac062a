import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from csrm_guard.rows import Row
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.batches import encode, to_batch
from csrm_guard_train.checkpoint import Trained, load_checkpoint, start
from csrm_guard_train.data import Authored
from csrm_guard_train.engine import Single
from csrm_guard_train.loop import _losses, _step, train
from csrm_guard_train.monitor import thin, validate
from csrm_guard_train.predict import predict
from csrm_guard_train.recipe import Lora, Mixture, Recipe
from csrm_guard_train.validation import validation_rows
from tests.tiny import ROOT

pytestmark = pytest.mark.slow
RECIPE = Recipe(backbone="tiny", epochs=0.4, step_tokens=4096, lr=2e-3, dropout=0.0, mixture=Mixture(checkable=1))


def begin(backbones: Path, **changes: object) -> Trained:
    return start(RECIPE.model_copy(update=changes), backbones / "tiny")


def held_out(authored: Authored) -> list[Row]:
    return validation_rows(authored, 0)[:8]


def records(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls(authored: Authored, backbones: Path, tmp_path: Path):
    trained = begin(backbones, epochs=2.0, head_lr=5e-2)
    trained.model.out.bias.data.fill_(4.0)  # finds every rule violated, which most are not
    train(trained, Augmenter(authored, RECIPE.mixture), [], tmp_path)
    losses = [r["cls"] for r in records(tmp_path) if "cls" in r]
    assert max(losses[-4:]) < 0.5 * min(losses[:2])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(authored: Authored, backbones: Path, tmp_path: Path):
    augmenter = Augmenter(authored, RECIPE.mixture)
    whole = begin(backbones)
    train(whole, augmenter, [], tmp_path / "whole")
    train(begin(backbones), augmenter, [], tmp_path / "parts", stop_after=0.0)
    resumed = load_checkpoint(tmp_path / "parts" / "checkpoint")
    train(resumed, augmenter, [], tmp_path / "parts")
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_finished_run_leaves_nothing_to_resume(authored: Authored, backbones: Path, tmp_path: Path):
    train(begin(backbones, epochs=0.1), Augmenter(authored, RECIPE.mixture), [], tmp_path)
    assert not (tmp_path / "checkpoint" / "resume.pt").exists()


def test_the_card_says_how_the_run_went(authored: Authored, backbones: Path, tmp_path: Path):
    train(begin(backbones, epochs=0.1), Augmenter(authored, RECIPE.mixture), held_out(authored), tmp_path)
    card = load_checkpoint(tmp_path / "checkpoint").card
    assert card["training"]["step"] == records(tmp_path)[-1]["step"]
    assert 0 <= card["training"]["held_out"]["auroc"] <= 1


def test_validation_scores_each_kind_of_row(authored: Authored, untrained: Trained):
    rows = validation_rows(authored, 0)
    random.Random(0).shuffle(rows)
    found = validate(untrained.model, untrained, rows)
    orders = {"violating_over_compliant", "violating_over_lenient", "strict_over_compliant"}
    assert {"auroc", "auroc_items", "auroc_same_rule", "auroc_rungs", "auroc_transcripts"} | orders == set(found)


def test_a_step_in_parts_has_the_gradient_of_the_step_at_once(authored: Authored, backbones: Path):
    found = []
    for tokens in (100_000, 1):
        trained = begin(backbones, precision="float32", batch_tokens=tokens)
        group = Augmenter(authored, RECIPE.mixture).item(authored.items[0], random.Random(0))
        row = encode(group, trained.encoder)
        assert row is not None
        engine = Single(trained.model, trained.recipe)
        # The same group twice: two halves of equal means.
        losses, size = _step(engine, [row, row], trained.recipe, 0.5)
        found.append((losses["loss"], losses["grad_norm"], size))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_lora_leaves_the_backbone_as_it_was_until_it_is_folded_in(authored: Authored, backbones: Path, tmp_path: Path):
    pytest.importorskip("peft")
    trained = begin(backbones, backbone="tiny", lora=Lora(rank=4), precision="float32", epochs=0.2)
    before = start(RECIPE, backbones / "tiny").model.backbone.state_dict()
    train(trained, Augmenter(authored, RECIPE.mixture), [], tmp_path)
    after = trained.model.backbone.state_dict()
    base = {k.replace(".base_layer", ""): v for k, v in after.items() if ".lora_" not in k}
    assert all(torch.equal(before[k], v) for k, v in base.items())
    folded = load_checkpoint(tmp_path / "checkpoint").model
    assert not any(".lora_" in k for k in folded.state_dict())
    query = "backbone.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(folded.state_dict()[query], before[query.removeprefix("backbone.")])
    rows = validation_rows(authored, 0)[:6]
    ours, theirs = predict(trained.model.eval(), trained.encoder, rows), predict(folded, trained.encoder, rows)
    assert all(np.allclose(a.logits, b.logits, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_the_papers_recipe_runs_on_a_decoder(authored: Authored, backbones: Path, tmp_path: Path):
    """CSRM_SMOLLM names a folder in transformers' format, such as SmolLM2-135M's; else a tiny random Llama learns."""
    paper = Recipe.from_file(ROOT / "train" / "recipes" / "paper.toml")
    recipe = paper.model_copy(update={"backbone": "llama", "epochs": 0.1, "lr": 1e-3, "step_tokens": 4096})
    trained = start(recipe, Path(os.environ.get("CSRM_SMOLLM") or backbones / "llama"))
    before = trained.model.unsafe.detach().clone()
    train(trained, Augmenter(authored, recipe.mixture), held_out(authored), tmp_path)
    assert not torch.equal(before, trained.model.unsafe)
    rows = validation_rows(authored, 0)[:4]
    loaded = load_checkpoint(tmp_path / "checkpoint")
    ours, theirs = predict(trained.model.eval(), trained.encoder, rows), predict(loaded.model, loaded.encoder, rows)
    assert all(np.allclose(a.logits, b.logits, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_the_policys_own_term_counts_by_its_weight(authored: Authored, backbones: Path):
    trained = begin(backbones, precision="float32")
    trained.model.eval()
    row = encode(Augmenter(authored, RECIPE.mixture).item(authored.items[0], random.Random(0)), trained.encoder)
    assert row is not None
    batch = to_batch([row])
    without = _losses(trained.model, batch, trained.recipe)
    weighted = _losses(trained.model, batch, trained.recipe.model_copy(update={"policy_weight": 2.0}))
    assert float(without["policy"].detach()) > 0
    assert torch.isclose(weighted["loss"], without["loss"] + 2 * without["policy"])


@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_moves_the_word_embeddings_unless_they_are_frozen(
    authored: Authored, backbones: Path, tmp_path: Path, frozen: bool
):
    trained = begin(backbones, epochs=0.1, freeze_words=frozen)
    words = trained.model.backbone.get_input_embeddings().weight
    before = words.detach().clone()
    train(trained, Augmenter(authored, RECIPE.mixture), [], tmp_path)
    assert torch.equal(before, words) == frozen


@pytest.mark.parametrize(("bound", "moved"), [(0.0, True), (1e6, False)])
def test_steps_of_what_is_known_move_nothing(
    authored: Authored, backbones: Path, tmp_path: Path, bound: float, moved: bool
):
    trained = begin(backbones, epochs=0.1, skip_below=bound)
    before = trained.model.out.weight.detach().clone()
    run = train(trained, Augmenter(authored, RECIPE.mixture), [], tmp_path)
    assert torch.equal(before, trained.model.out.weight) != moved
    assert run.tokens > 0


def test_a_thinned_validation_keeps_families_whole(authored: Authored):
    rows = validation_rows(authored, 0)
    kept = {row.id for row in thin(rows, len(rows) // 3)}
    assert 0 < len(kept) < len(rows) / 2
    for item in authored.items:
        family = {row.id for row in rows if row.id.startswith(f"{item.id}-")}
        assert family <= kept or not family & kept


def test_a_validation_that_is_small_enough_is_not_thinned(authored: Authored):
    rows = validation_rows(authored, 0)
    assert thin(rows, len(rows)) == rows
