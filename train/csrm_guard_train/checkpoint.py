"""A checkpoint directory: weights, tokenizer, recipe, data card, and what resuming needs."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from csrm_guard.encoding import Encoder
from csrm_guard.rows import read_jsonl
from csrm_guard_train.model import RuleReader
from csrm_guard_train.recipe import Recipe

__all__ = ["CheckpointError", "Trained", "find_backbone", "load_checkpoint", "save_checkpoint", "start"]

_CLS, _SEP = "[CLS]", "[SEP]"


class CheckpointError(Exception):
    """A checkpoint or backbone folder is incomplete; the message names what is missing."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model with the tokenizer and the recipe that belong to it.

    Attributes:
        card: what it was trained on: files, rows, hashes, seed, wall time.
        held_out: labelled rows of held-out deployments, for calibration at export.
    """

    model: RuleReader
    encoder: Encoder
    tokenizer: Tokenizer
    recipe: Recipe
    card: dict[str, Any]
    held_out: list[dict[str, Any]]


def find_backbone(name: str, folders: Path | None) -> Path:
    """Return the folder of a pretrained encoder.

    Raises:
        CheckpointError: it is not there.
    """
    path = (folders / name) if folders else Path(name)
    if not (path / "config.json").is_file() or not (path / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{path}: no config.json and tokenizer.json; give --backbones the folder that holds {name!r}"
        )
    return path


def start(recipe: Recipe, backbone: Path) -> Trained:
    """Return an untrained model on a pretrained encoder."""
    torch.manual_seed(recipe.seed)
    encoder = BertModel.from_pretrained(
        backbone, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa"
    )
    return _assemble(RuleReader(encoder, dropout=recipe.dropout), backbone, recipe, {}, [])


def _assemble(
    model: RuleReader, folder: Path, recipe: Recipe, card: dict[str, Any], held_out: list[dict[str, Any]]
) -> Trained:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = Encoder(tokenizer, cls=_CLS, sep=_SEP, limits=recipe.limits)
    return Trained(model, encoder, tokenizer, recipe, card, held_out)


def save_checkpoint(trained: Trained, folder: Path, *, resume: dict[str, Any] | None = None) -> None:
    """Write a checkpoint in one step: an interrupted save leaves the previous one whole.

    Args:
        trained: what to write.
        folder: where to; replaced.
        resume: state of the run (optimizer, schedule, counters), for `torch.save`.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in trained.model.state_dict().items()}
    save_file(state, str(fresh / "model.safetensors"))
    trained.model.config.to_json_file(str(fresh / "config.json"))
    trained.tokenizer.save(str(fresh / "tokenizer.json"))
    (fresh / "recipe.json").write_text(trained.recipe.model_dump_json(indent=2), encoding="utf-8")
    (fresh / "card.json").write_text(json.dumps(trained.card, indent=2), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in trained.held_out]
    (fresh / "held_out.jsonl").write_text("".join(lines), encoding="utf-8")
    if resume is not None:
        torch.save(resume, fresh / "resume.pt")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, *, attention: str = "sdpa") -> Trained:
    """Read a checkpoint.

    Args:
        folder: a checkpoint directory.
        attention: the attention that transformers uses (`sdpa` or `eager`).

    Raises:
        CheckpointError: a file is missing.
    """
    for name in ("model.safetensors", "config.json", "tokenizer.json", "recipe.json", "card.json", "held_out.jsonl"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; is this a folder that csrm-train wrote?")
    recipe = Recipe.from_file(folder / "recipe.json")
    config = BertConfig.from_json_file(str(folder / "config.json"))
    config._attn_implementation = attention
    model = RuleReader(BertModel(config, add_pooling_layer=False), dropout=recipe.dropout)
    model.load_state_dict(load_file(str(folder / "model.safetensors")))
    model.eval()
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    held_out = [row for _, row in read_jsonl(folder / "held_out.jsonl")]
    return _assemble(model, folder, recipe, card, held_out)
