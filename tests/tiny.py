"""A tiny real encoder, a small part of the authored data and a recipe, for runs of a few seconds."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AUTHORED = ROOT / "train" / "data" / "authored"
_MODERN = {f"{name}_token_id": at for at, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}


def make_backbone(folder: Path, kind: str = "bert") -> Path:
    """Write a random two-layer model of width 32 with the shipped tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    extra = {
        "mpnet": {"pad_token_id": 1},
        "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2, **_MODERN},
        "deberta-v2": {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
        "llama": {"num_key_value_heads": 1},
        "qwen2": {"num_key_value_heads": 1},
    }
    config = AutoConfig.for_model(kind, intermediate_size=64, **size, **extra.get(kind, {}))
    builder = AutoModelForCausalLM if kind in ("llama", "qwen2") else AutoModel
    builder.from_config(config).save_pretrained(folder)
    shutil.copy(ROOT / "csrm_guard" / "artifacts" / "default" / "tokenizer.json", folder)
    return folder


def make_authored(folder: Path) -> Path:
    """Write the first rows of each authored set."""
    folder.mkdir()
    for stem, count in (("items", 24), ("ladders", 16), ("rungs", 84), ("transcripts", 12)):
        with gzip.open(AUTHORED / f"{stem}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [line for line, _ in zip(lines, range(count), strict=False)]
        (folder / f"{stem}.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


def make_recipe(path: Path, **changes: object) -> Path:
    values: dict[str, object] = {
        "backbone": "tiny", "epochs": 1.0, "step_tokens": 4096, "lr": 1e-3, "dropout": 0.0, "validation": 0.2,
    }  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**values, **changes}.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
