"""Make a checkpoint of an exported model, to train it on: csrm-restore MODEL_DIR CHECKPOINT.

The graph holds all weights, in int8 those that `csrm_guard_export.quantizable` names. What comes back scores as the
graph does but for the rounding of activations, since weights keep the values to which int8 cut them. By what the
exporter divided values, channel by channel, it did not write down: they and the layer behind them come back with equal
shares of what both weigh together, which changes no score and makes exports of one lineage comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from csrm_guard.artifact import Manifest, read_manifest
from csrm_guard.encoding import Encoder
from csrm_guard.errors import ArtifactError
from csrm_guard_export.nodes import QKV, WORDS
from csrm_guard_train.checkpoint import CheckpointError, Trained, save_checkpoint
from csrm_guard_train.model import RuleReader
from csrm_guard_train.recipe import Recipe

__all__ = ["restore"]

Floats = NDArray[np.float32]
app = typer.Typer(add_completion=False)


def restore(folder: Path) -> Trained:
    """Return the model of a directory that csrm-export wrote, with its tokenizer, recipe and card.

    It has no held-out rows: csrm-train holds them out anew, by the recipe's `validation` and `seed`.

    Args:
        folder: a model directory of layout `split`, int8 or fp32.

    Raises:
        ArtifactError: the directory is incomplete or damaged.
        CheckpointError: its graph is of another layout, or its card has no recipe.
    """
    manifest = read_manifest(folder)
    if manifest.layout != "split":
        raise CheckpointError(f"{folder}: layout {manifest.layout}; only BERT encoders in int8 or fp32 restore")
    if "recipe" not in manifest.card:
        raise CheckpointError(f"{folder}/manifest.json: the card has no `recipe`; train from a checkpoint instead")
    recipe = Recipe.model_validate(manifest.card["recipe"])
    graph = _Graph(folder / manifest.graph)
    weights = graph.weights()
    config = graph.config(weights)
    model = RuleReader(BertModel(config), structure=recipe.structure, dropout=recipe.dropout)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    model.eval()
    tokenizer = Tokenizer.from_file(str(folder / manifest.tokenizer))
    encoder = Encoder(tokenizer, cls=manifest.cls, sep=manifest.sep, limits=manifest.limits)
    return Trained(model, encoder, tokenizer, recipe, _card(manifest), [])


def _card(manifest: Manifest) -> dict[str, Any]:
    kept = {name: value for name, value in manifest.card.items() if name != "calibration"}
    return {**kept, "restored_from": {"id": manifest.id, "precision": manifest.precision}}


class _Graph:
    """The nodes of a split graph in the order in which `csrm_guard_export.split` writes them, and their constants."""

    def __init__(self, path: Path) -> None:
        graph = onnx.load(str(path)).graph
        self.nodes = list(graph.node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.maker = {output: node for node in self.nodes for output in node.output}
        keys = next(value for value in graph.input if value.name == "past_k0").type.tensor_type.shape.dim
        self.heads, self.size = int(keys[0].dim_value), int(keys[2].dim_value)
        self.cut = any(node.op_type == "MatMulIntegerToFloat" for node in self.nodes)
        self.layers = sum(value.name.startswith("past_k") for value in graph.input)

    def weights(self) -> dict[str, Floats]:
        """Return the reader's weights by their names."""
        found = {**self._embeddings(), **self._head()}
        linears, norms, gelus = self._linears(), self._all("LayerNormalization"), self._all("BiasGelu")

        def norm(name: str) -> None:
            _, weight, bias = next(norms).input
            found[f"{name}.weight"], found[f"{name}.bias"] = self.constants[weight], self.constants[bias]

        norm("backbone.embeddings.LayerNorm")
        for layer in range(self.layers):
            at = f"backbone.encoder.layer.{layer}."
            # The last layer asks for one row of queries, after all keys and values.
            order = QKV if layer < self.layers - 1 else (*QKV[1:], QKV[0])
            for name in order:
                weight, bias = next(linears)
                root = np.float32(self.size**0.5 if name == "query" else 1.0)
                found[f"{at}attention.self.{name}.weight"] = weight * root
                found[f"{at}attention.self.{name}.bias"] = bias * root
            for name in ("attention.output.dense", "intermediate.dense", "output.dense"):
                found[f"{at}{name}.weight"], found[f"{at}{name}.bias"] = next(linears)
            if self.cut:
                _share(found, f"{at}attention.self.value", f"{at}attention.output.dense")
            found[f"{at}intermediate.dense.bias"] = self.constants[next(gelus).input[1]]
            norm(f"{at}attention.output.LayerNorm")
            norm(f"{at}output.LayerNorm")
        return found

    def config(self, weights: dict[str, Floats]) -> BertConfig:
        """Return the encoder's configuration, read from its shapes."""
        words, hidden = weights[f"backbone.{WORDS}.weight"].shape
        norm = next(self._all("LayerNormalization"))
        return BertConfig(
            vocab_size=words,
            hidden_size=hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=len(weights["backbone.encoder.layer.0.intermediate.dense.bias"]),
            max_position_embeddings=len(weights["backbone.embeddings.position_embeddings.weight"]),
            type_vocab_size=2,
            layer_norm_eps=next(a.f for a in norm.attribute if a.name == "epsilon"),
        )

    def _all(self, kind: str) -> Iterator[NodeProto]:
        return (node for node in self.nodes if node.op_type == kind)

    def _linears(self) -> Iterator[tuple[Floats, Floats]]:
        """Yield weights (out, in) and biases (out,) of the encoder's linear layers; without a bias, zeros."""
        for node in self.nodes:
            if node.op_type == "MatMulIntegerToFloat":
                scales, bias = self.constants[node.input[3]], node.input[6] if len(node.input) > 6 else ""
                weight = self.constants[node.input[1]].T * scales[:, None] * self._shrunk(node.input[0])
            elif node.op_type == "MatMul" and node.input[1] in self.constants:
                weight, bias = self.constants[node.input[1]].T, self._added(node.output[0])
            else:
                continue
            yield weight, self.constants[bias] if bias else np.zeros(len(weight), np.float32)

    def _shrunk(self, u8: str) -> Floats:
        """Return what a layer's input was multiplied with before it was cut to u8, (in,) or 1."""
        before = self.maker[self.maker[u8].input[0]]
        if before.op_type == "Mul" and before.input[1] in self.constants:
            return self.constants[before.input[1]]
        return np.ones(1, np.float32)

    def _added(self, product: str) -> str:
        """Return the constant that is added to a product next, or an empty name."""
        node = next(node for node in self.nodes if product in node.input)
        return node.input[1] if node.op_type == "Add" and node.input[1] in self.constants else ""

    def _embeddings(self) -> dict[str, Floats]:
        at = "backbone.embeddings."
        gathers = [node for node in self._all("Gather") if node.input[1] in ("ids", "positions")]
        tables = [self.constants[node.input[0]] for node in gathers]
        words = tables[0]
        if words.dtype == np.int8:
            words, (places,) = words * tables[1], tables[2:]
        else:
            (places,) = tables[1:]
        added = [n.input[1] for n in self._all("Add") if n.input[1] in self.constants]
        # The first two constants that are added: the kinds of the conversation's tokens and of the rules'.
        kinds = np.stack([self.constants[added[1]], self.constants[added[0]]])
        return {
            f"{at}word_embeddings.weight": words.astype(np.float32),
            f"{at}position_embeddings.weight": places,
            f"{at}token_type_embeddings.weight": kinds,
        }

    def _head(self) -> dict[str, Floats]:
        dense, out = self._all("Gemm")
        names = ("dense.weight", "dense.bias", "out.weight", "out.bias")
        return dict(zip(names, (self.constants[i] for node in (dense, out) for i in node.input[1:]), strict=True))


def _share(weights: dict[str, Floats], values: str, output: str) -> None:
    """Give each value channel and its column of the layer behind a like share of their norms' product."""
    ratio = np.linalg.norm(weights[f"{output}.weight"], axis=0) / np.linalg.norm(weights[f"{values}.weight"], axis=1)
    # The exporter's divisors have the geometric mean 1, so that of the ratios is the model's own.
    factors = np.sqrt(ratio / np.exp(np.log(ratio).mean())).astype(np.float32)
    weights[f"{values}.weight"] = weights[f"{values}.weight"] * factors[:, None]
    weights[f"{values}.bias"] = weights[f"{values}.bias"] * factors
    weights[f"{output}.weight"] = weights[f"{output}.weight"] / factors


@app.command()
def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="What csrm-export wrote, or the wheel's model.")],
    out: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The new checkpoint directory; must not exist.")],
) -> None:
    """Write a checkpoint that `csrm-train --init` starts from."""
    try:
        if out.exists():
            raise CheckpointError(f"{out}: exists already; name a new folder")
        save_checkpoint(restore(model), out)
    except (ArtifactError, CheckpointError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    typer.echo(str(out))


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
