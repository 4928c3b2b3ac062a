"""The ways in which others score rules against a message, with the same backbone and random heads: speed only.

Each takes a list of (rule text, message) pairs; most cross-encode every rule with the message.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from peer_process import PeerProcess, started
from shape import Shape
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from csrm_guard.artifact import DEFAULT_ARTIFACT

Pairs = Sequence[tuple[str, str]]
Scorer = Callable[[Pairs], object]


def backbone() -> Path:
    """Write an encoder of the shipped model's shape with random weights and its tokenizer."""
    folder = Path(mkdtemp()) / "backbone"
    torch.manual_seed(0)
    like = Shape.of(DEFAULT_ARTIFACT)
    words = Tokenizer.from_file(str(DEFAULT_ARTIFACT / "tokenizer.json")).get_vocab_size()
    config = BertConfig(
        vocab_size=words, hidden_size=like.hidden, num_hidden_layers=like.layers,
        num_attention_heads=like.heads, intermediate_size=like.inner,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(DEFAULT_ARTIFACT / "tokenizer.json"), **special)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return folder


def cross_encoder(*labels: str) -> Path:
    """Write that encoder with a random head; no labels: one score."""
    source = backbone()
    named = {"id2label": dict(enumerate(labels)), "label2id": {x: i for i, x in enumerate(labels)}} if labels else {}
    model = BertForSequenceClassification.from_pretrained(source, num_labels=max(len(labels), 1), **named)
    model.save_pretrained(source.parent / "cross-encoder")
    AutoTokenizer.from_pretrained(source).save_pretrained(source.parent / "cross-encoder")
    return source.parent / "cross-encoder"


def transformers_torch(folder: Path, dtype: torch.dtype, batch: int = 32) -> Scorer:
    """Return the library's model and tokenizer, used as in its text-classification pipeline: padded batches."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()

    def score(pairs: Pairs) -> object:
        found = []
        with torch.inference_mode():
            for i in range(0, len(pairs), batch):
                part = [list(side) for side in zip(*pairs[i : i + batch], strict=True)]
                found.append(
                    model(
                        **tokenizer(
                            *part, padding=True, truncation=True, return_token_type_ids=True, return_tensors="pt"
                        )
                    ).logits
                )
        return torch.cat(found)

    return score


def sentence_transformers(folder: Path) -> Scorer:
    """Return the library's CrossEncoder on torch."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu")
    return lambda pairs: model.predict(list(pairs), batch_size=32, show_progress_bar=False)


def onnx_graph(folder: Path, *, int8: bool) -> Path:
    """Trace the cross-encoder; int8 by quantize_dynamic, as optimum's ORTQuantizer does."""
    path = folder / "model.onnx"
    if not path.is_file():
        model = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
        ids = torch.ones(2, 16, dtype=torch.long)
        axes = {name: {0: "b", 1: "t"} for name in ("input_ids", "attention_mask", "token_type_ids")}
        names = list(axes)
        torch.onnx.export(
            model, (ids, ids, ids * 0), str(path), input_names=names, output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "b"}}, opset_version=17, dynamo=False,
        )  # fmt: skip
    target = folder / "model.int8.onnx"
    if int8 and not target.is_file():
        quantize_dynamic(str(path), str(target), weight_type=QuantType.QInt8, per_channel=True)
    return target if int8 else path


def onnx_pairs(folder: Path, *, int8: bool, threads: int = 0, batch: int = 32) -> Scorer:
    """Return ONNX Runtime over padded batches: what optimum's ORTModelForSequenceClassification runs."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    run = onnxruntime.InferenceSession(str(onnx_graph(folder, int8=int8)), options, providers=["CPUExecutionProvider"])

    def score(pairs: Pairs) -> object:
        found = []
        for i in range(0, len(pairs), batch):
            part = [list(side) for side in zip(*pairs[i : i + batch], strict=True)]
            found.append(
                run.run(
                    None,
                    dict(
                        tokenizer(*part, padding=True, truncation=True, return_token_type_ids=True, return_tensors="np")
                    ),
                )[0]
            )
        return np.concatenate(found)

    return score


def onnx_plain(folder: Path, tokens: int, threads: int = 0) -> Callable[[], object]:
    """Return one plain int8 forward over so many tokens: nothing is packed, masked or decided."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    run = onnxruntime.InferenceSession(str(onnx_graph(folder, int8=True)), options, providers=["CPUExecutionProvider"])
    # Position embeddings end at 512: more tokens are rows of a batch, which costs less than one long sequence.
    rows = -(-tokens // 512)
    ids = np.full((rows, -(-tokens // rows)), 2000, np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return lambda: run.run(None, feed)


def gliclass() -> Scorer:
    """Return GLiClass's own pipeline, the same backbone as uni-encoder: all rules and the message in one sequence."""
    from gliclass import GLiClassModel, GLiClassModelConfig, ZeroShotClassificationPipeline
    from transformers import AutoConfig

    folder = backbone()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<<LABEL>>", "<<SEP>>"])
    config = GLiClassModelConfig(
        encoder_config=AutoConfig.from_pretrained(folder),
        encoder_model_name=str(folder),
        architecture_type="uni-encoder",
        class_token_index=len(tokenizer) - 2,
        text_token_index=len(tokenizer) - 1,
        problem_type="multi_label_classification",
        vocab_size=len(tokenizer),
        prompt_first=True,
    )
    model = GLiClassModel(config, from_pretrained=False).eval()
    model.resize_token_embeddings(len(tokenizer))
    pipeline = ZeroShotClassificationPipeline(
        model, tokenizer, classification_type="multi-label", device="cpu", progress_bar=False, max_length=512
    )

    def score(pairs: Pairs) -> object:
        by_message: dict[str, list[str]] = {}
        for rule, message in pairs:
            by_message.setdefault(message, []).append(rule)
        return [pipeline([message], rules, threshold=0.0) for message, rules in by_message.items()]

    return score


def ways() -> dict[str, Scorer]:
    """Return every peer that is installed; what is not is said on standard error."""
    folder = cross_encoder()
    found = {
        "every rule with the message: ONNX Runtime int8": onnx_pairs(folder, int8=True),
        "every rule with the message: ONNX Runtime fp32": onnx_pairs(folder, int8=False),
        "every rule with the message: transformers, torch fp32": transformers_torch(folder, torch.float32),
        "every rule with the message: transformers, torch bf16": transformers_torch(folder, torch.bfloat16),
    }
    more = {
        "every rule with the message: sentence-transformers CrossEncoder": lambda: sentence_transformers(folder),
        "all rules in one sequence: GLiClass pipeline": gliclass,
    }
    for name, make in more.items():
        try:
            found[name] = make()
        except ImportError as exc:
            print(f"{name}: left out, {exc}", file=sys.stderr)
    return found


def remote(pairs: Pairs, optimum: Path | None, llm_guard: Path | None) -> list[tuple[str, PeerProcess]]:
    """Return the peers that have environments of their own, given their Pythons; they hold the pairs already."""
    plain = cross_encoder()
    onnx_graph(plain, int8=True)
    # A zero-shot pipeline looks for the label `entailment`.
    entails = cross_encoder("not_entailment", "entailment") if llm_guard else plain
    onnx_graph(entails, int8=False)
    for folder in {plain, entails}:
        # transformers 5 names its tokenizer class so that version 4 does not find it.
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(settings), encoding="utf-8")
    wanted = [
        ("optimum ORTModelForSequenceClassification", optimum, "optimum", plain, "model.onnx"),
        ("optimum ORTModelForSequenceClassification, int8", optimum, "optimum", plain, "model.int8.onnx"),
        ("LLM Guard BanTopics, ONNX", llm_guard, "llm-guard", entails, "model.onnx"),
    ]
    found = []
    for name, python, kind, folder, file in wanted:
        peer = started(name, python, kind, {"folder": str(folder), "file": file, "pairs": [list(p) for p in pairs]})
        if peer is not None:
            found.append((f"every rule with the message: {name} ({kind} {peer.version})", peer))
    return found
