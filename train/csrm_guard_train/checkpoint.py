"""A checkpoint directory: weights, tokenizer, recipe, data card, and what resuming needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from csrm_guard.encoding import Encoder
from csrm_guard.rows import read_jsonl
from csrm_guard_train.families import family_of, special_tokens
from csrm_guard_train.model import RuleReader
from csrm_guard_train.recipe import Lora, Recipe

__all__ = [
    "CheckpointError",
    "Trained",
    "find_backbone",
    "load_checkpoint",
    "merge_adapters",
    "save_checkpoint",
    "start",
]

# The paper's answer words (section 3.1), with the spellings that byte-level tokenizers tell apart.
_SAFE, _UNSAFE = ("safe", " safe", "Safe"), ("unsafe", " unsafe", "Unsafe")


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
    """Return the folder of a pretrained backbone.

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
    """Return an untrained model on a pretrained backbone.

    Raises:
        CheckpointError: the recipe asks of the backbone what it does not have.
        FamilyError: the backbone is of no known class.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    family = family_of(AutoConfig.from_pretrained(backbone))
    options = {"attn_implementation": "eager", "dtype": torch.float32, **family.options}
    verbalizers = None
    if recipe.head == "verbalizer":
        if not family.causal:
            raise CheckpointError(f"{backbone}: head = 'verbalizer' needs a decoder; use 'linear'")
        language = AutoModelForCausalLM.from_pretrained(backbone, **options)
        table = language.get_output_embeddings().weight.detach()
        verbalizers = (table[_first_tokens(tokenizer, _SAFE)], table[_first_tokens(tokenizer, _UNSAFE)])
        body = language.model
    else:
        body = AutoModel.from_pretrained(backbone, **options)
    model = RuleReader(body, structure=recipe.structure, dropout=recipe.dropout, verbalizers=verbalizers)
    if recipe.lora:
        _adapt(model, recipe.lora)
    return _assemble(model, tokenizer, recipe, {}, [])


def _first_tokens(tokenizer: Tokenizer, words: tuple[str, ...]) -> list[int]:
    return sorted({tokenizer.encode(word, add_special_tokens=False).ids[0] for word in words})


def _adapt(model: RuleReader, lora: Lora) -> None:
    """Freeze the backbone and put adapters into its linear layers."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as exc:
        raise CheckpointError("the recipe's `lora` needs peft: pip install 'csrm-guard[train]'") from exc
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # typed int, used as a factor
        lora_dropout=lora.dropout,
        target_modules=list(model.family.adapters),
    )
    model.backbone.requires_grad_(False)
    inject_adapter_in_model(config, model.backbone)


def merge_adapters(model: RuleReader) -> None:
    """Fold every LoRA adapter into its layer, so that the model is a plain one again."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.backbone.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLayer):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())


def _assemble(
    model: RuleReader, tokenizer: Tokenizer, recipe: Recipe, card: dict[str, Any], held_out: list[dict[str, Any]]
) -> Trained:
    cls, sep = special_tokens(tokenizer)
    return Trained(model, Encoder(tokenizer, cls=cls, sep=sep, limits=recipe.limits), tokenizer, recipe, card, held_out)


def save_checkpoint(
    trained: Trained,
    folder: Path,
    *,
    resume: dict[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint in one step: an interrupted save leaves the previous one whole.

    Args:
        trained: what to write.
        folder: where to; replaced.
        resume: state of the run (optimizer, schedule, counters), for `torch.save`.
        weights: the model's weights where it does not hold them whole itself.
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in (weights or trained.model.state_dict()).items()}
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


def load_checkpoint(folder: Path, *, attention: str = "eager") -> Trained:
    """Read a checkpoint.

    A finished one has its adapters folded in; one that is to be resumed keeps them apart.

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
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    config._attn_implementation = attention
    state = load_file(str(folder / "model.safetensors"))
    verbalizers = (state["safe"], state["unsafe"]) if "safe" in state else None
    body: PreTrainedModel = AutoModel.from_config(config)
    model = RuleReader(body, structure=recipe.structure, dropout=recipe.dropout, verbalizers=verbalizers)
    if recipe.lora and any(".lora_" in name for name in state):
        _adapt(model, recipe.lora)
    model.load_state_dict(state)
    if recipe.lora and not (folder / "resume.pt").is_file():
        merge_adapters(model)
    model.eval()
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    held_out = [row for _, row in read_jsonl(folder / "held_out.jsonl")]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return _assemble(model, tokenizer, recipe, card, held_out)
