"""The nodes and weights of a graph being written: embeddings, linear layers in fp32 or int8, norms, the head.

Shapes: N rows, H hidden; h heads of size d.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from csrm_guard_export.ranges import Observed, Scaling, choose, quantize_weight
from csrm_guard_train.model import RuleReader

__all__ = ["MS", "QKV", "WORDS", "Nodes", "can_split", "matches", "quantizable"]

MS = "com.microsoft"
QKV = ("query", "key", "value")
WORDS = "embeddings.word_embeddings"
Attribute: TypeAlias = int | float | list[int]
Floats: TypeAlias = NDArray[np.float32]


def can_split(model: RuleReader) -> bool:
    """Return whether a model is one whose graph is written here rather than traced."""
    config = model.config
    return (
        config.model_type == "bert"
        and model.structure == "context-first"
        and model.safe is None
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def quantizable(model: RuleReader) -> list[str]:
    """Return the names of what int8 cuts: the word embeddings, and per layer its linear layers."""
    kinds = ("attention.self", "attention.output.dense", "intermediate.dense", "output.dense")
    layers = range(int(model.config.num_hidden_layers))
    return [WORDS, *(f"encoder.layer.{layer}.{kind}" for layer in layers for kind in kinds)]


def matches(name: str, pattern: str) -> bool:
    """Return whether a name is meant by a pattern; `*` is one part between dots, or at the end all that follow."""
    have, wanted = name.split("."), pattern.split(".")
    long_enough = len(have) >= len(wanted) if wanted[-1] == "*" else len(have) == len(wanted)
    return long_enough and all(fnmatchcase(a, b) for a, b in zip(have, wanted, strict=False))


class Nodes:
    """What the writers of both layouts share.

    Args:
        model: the reader; `can_split` holds.
        seen: inputs of the linear layers (`observe`), by which they are cut to int8; None: no int8.
        keep: patterns (`matches`) of `quantizable` names that stay in fp32.
        half: weights and arithmetic in fp16; with no `seen`.
    """

    def __init__(
        self,
        model: RuleReader,
        seen: Mapping[str, Observed] | None,
        keep: Collection[str] = (),
        *,
        half: bool = False,
    ) -> None:
        assert not (half and seen is not None)
        self.weights = {k: v.detach().float().numpy() for k, v in model.state_dict().items()}
        self.seen, self.keep, self.half = seen, tuple(keep), half
        config = model.config
        self.layers, self.hidden = int(config.num_hidden_layers), int(config.hidden_size)
        self.heads = int(config.num_attention_heads)
        self.size = self.hidden // self.heads
        self.epsilon = float(config.layer_norm_eps)
        self.nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[int, ...], str] = {}
        self._scalings: dict[str, Scaling] = {}
        self._words_s8: tuple[str, str] | None = None

    def model(self, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> onnx.ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(self.nodes, "csrm", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def int8(self, name: str) -> bool:
        """Return whether a name of `quantizable` is cut to int8."""
        return self.seen is not None and not any(matches(name, pattern) for pattern in self.keep)

    def words(self, ids: str) -> str:
        """Return the word embeddings of token ids, (..., H)."""
        table = self.weights[f"backbone.{WORDS}.weight"]
        if not self.int8(WORDS):
            return self.op("Gather", self.w(f"backbone.{WORDS}.weight"), ids)
        if self._words_s8 is None:
            s8, scales = quantize_weight(table)
            self._words_s8 = self.constant(s8), self.constant(scales[:, None])
        values = self.op("Cast", self.op("Gather", self._words_s8[0], ids), to=TensorProto.FLOAT)
        return self.op("Mul", values, self.op("Gather", self._words_s8[1], ids))

    def logits(self, x: str, shape: str) -> None:
        """Write the head over rows (N, H); its output, in fp32, is the graph's."""
        x = self.op("Tanh", self.op("Gemm", x, self.w("dense.weight"), self.w("dense.bias"), transB=1))
        x = self.op("Gemm", x, self.w("out.weight"), self.w("out.bias"), transB=1)
        if self.half:
            x = self.op("Cast", x, to=TensorProto.FLOAT)
        self.nodes.append(helper.make_node("Reshape", [x, shape], ["logits"]))

    def rest(self, layer: int, read: str, x: str) -> str:
        """Return a layer's output from what its heads read and its input, both (N, H)."""
        at = f"backbone.encoder.layer.{layer}."
        y = self.linear(read, f"{at}attention.output.dense", divided=True)
        x = self.normal(self.op("Add", y, x), f"{at}attention.output.LayerNorm")
        y = self.linear(x, f"{at}intermediate.dense", bias=False)
        y = self.op("BiasGelu", y, self.w(f"{at}intermediate.dense.bias"), domain=MS)
        return self.normal(self.op("Add", self.linear(y, f"{at}output.dense"), x), f"{at}output.LayerNorm")

    def linears(self, x: str, layer: int, names: tuple[str, ...] = QKV, *, extra: int = 0) -> list[str]:
        """Return query, key or value of rows; queries come divided by the root of d, values for int8's sake.

        Args:
            x: rows (N, H).
            layer: whose attention.
            names: which of the three.
            extra: columns that each head's queries and keys get more: 1 in the first of a query's, 0 otherwise.
        """
        at = f"backbone.encoder.layer.{layer}.attention."
        weights = {n: self.weights[f"{at}self.{n}.weight"] for n in QKV}
        biases = {n: self.weights[f"{at}self.{n}.bias"] for n in QKV}
        root = np.float32(self.size**-0.5)
        weights["query"], biases["query"] = weights["query"] * root, biases["query"] * root
        output = f"{at}output.dense"
        if self.int8(_public(output)):
            # What the heads read is a mean of values: dividing these divides it, and costs nothing.
            later = self.scaling(output, self.weights[f"{output}.weight"]).factors
            weights["value"], biases["value"] = weights["value"] / later[:, None], biases["value"] / later
        own = _public(f"{at}self")
        scaling = self.scaling(f"{at}self.query", np.concatenate([weights[n] for n in QKV])) if self.int8(own) else None
        for n, first in (("query", 1.0), ("key", 0.0)) if extra else ():
            weights[n], biases[n] = self._wider(weights[n], biases[n], extra, first)
        if scaling is None:
            return [self.op("Add", self._times(x, weights[n]), self.constant(biases[n])) for n in names]
        u8 = self.u8(self.op("Mul", x, self.constant(1.0 / scaling.factors)), scaling)
        return [self._multiplied(u8, scaling, weights[n], biases[n]) for n in names]

    def _wider(self, weight: Floats, bias: Floats, extra: int, first: float) -> tuple[Floats, Floats]:
        rows = np.pad(weight.reshape(self.heads, self.size, -1), ((0, 0), (0, extra), (0, 0)))
        shift = np.pad(bias.reshape(self.heads, self.size), ((0, 0), (0, extra)))
        shift[:, self.size] = first
        return rows.reshape(-1, self.hidden), shift.reshape(-1)

    def linear(self, x: str, name: str, *, bias: bool = True, divided: bool = False) -> str:
        """Return rows through a linear layer; `divided`: they come divided by its factors."""
        weight, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"] if bias else None
        if not self.int8(_public(name)):
            y = self._times(x, weight)
            return self.op("Add", y, self.constant(shift)) if shift is not None else y
        scaling = self.scaling(name, weight)
        if not divided:
            x = self.op("Mul", x, self.constant(1.0 / scaling.factors))
        return self._multiplied(self.u8(x, scaling), scaling, weight, shift)

    def scaling(self, name: str, weight: Floats) -> Scaling:
        """Return how a linear layer's input is cut."""
        assert self.seen is not None
        if name not in self._scalings:
            self._scalings[name] = choose(self.seen[_public(name)], weight)
        return self._scalings[name]

    def u8(self, x: str, scaling: Scaling) -> str:
        """Return rows cut to u8."""
        return self.op("QuantizeLinear", x, self.constant(scaling.scale), self.constant(scaling.zero))

    def _multiplied(self, u8: str, s: Scaling, weight: Floats, bias: Floats | None) -> str:
        """Return u8 rows times an s8 weight, in fp32."""
        s8, scales = quantize_weight(weight * s.factors)
        inputs = [u8, self.constant(s8.T), self.constant(s.scale), self.constant(scales), self.constant(s.zero), ""]
        inputs += [self.constant(bias)] if bias is not None else []
        return self.op("MatMulIntegerToFloat", *inputs, domain=MS)

    def _times(self, x: str, weight: Floats) -> str:
        return self.op("MatMul", x, self.constant(weight.T))

    def product(self, queries: str, keys: str) -> str:
        """Return queries (..., L, d) times keys (..., S, d) transposed: (..., L, S)."""
        # Written as one node: ONNX Runtime folds a transposition of its own accord only up to rank 3, and a
        # transposition of the last two dimensions costs nine times one that moves whole rows.
        return self.op("FusedMatMul", queries, keys, domain=MS, transB=1)

    def normal(self, x: str, name: str) -> str:
        """Return rows through a layer norm."""
        weights = self.w(f"{name}.weight"), self.w(f"{name}.bias")
        return self.op("LayerNormalization", x, *weights, axis=-1, epsilon=self.epsilon)

    def w(self, name: str) -> str:
        """Return a weight of the model as a constant."""
        return self.constant(self.weights[name])

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Return the name of a new constant; fp32 becomes fp16 where the graph is."""
        name = f"c{len(self._constants)}"
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        if self.half and array.dtype == np.float32:
            array = array.astype(np.float16)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        """Return the name of an int64 constant (n,)."""
        if values not in self._known:
            self._known[values] = self.constant(np.array(values, np.int64))
        return self._known[values]

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """Return the output of a new node."""
        return self.ops(1, kind, *inputs, domain=domain, **attributes)[0]

    def ops(self, count: int, kind: str, *inputs: str, domain: str = "", **attributes: Attribute) -> list[str]:
        """Return the outputs of a new node."""
        name = f"{kind}{len(self.nodes)}"
        outputs = [f"{name}_{i}" for i in range(count)]
        node = helper.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attributes)  # type: ignore[arg-type]
        self.nodes.append(node)
        return outputs


def _public(name: str) -> str:
    return name.removeprefix("backbone.")
