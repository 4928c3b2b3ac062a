"""Write the split graph of a BERT-class reader: conversation and rules as two streams, nothing computed twice.

It computes what the traced graph computes (`csrm_guard_train.model`, structure `context-first`), with less work:

- rules never look at each other, so their attention is (tokens of a rule) x (conversation + that rule), which is linear
  in the number of rules; the traced graph masks out the same pairs after computing them;
- the last layer runs for the one token where each rule is read;
- keys and values of tokens read before (a shared prompt) come in as inputs, those of this run go out;
- int8 ranges are fixed at export (`csrm_guard_export.ranges`).

Shapes: T tokens of the conversation, behind P that were read before (S = P + T); R rules of L tokens (padded); h heads
of size d.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from csrm_guard_export.ranges import Observed, Scaling, choose, quantize_weight
from csrm_guard_train.model import RuleReader

__all__ = ["can_split", "write_split"]

_MS = "com.microsoft"
Attribute: TypeAlias = int | float | list[int]
_QKV = ("query", "key", "value")


def can_split(model: RuleReader) -> bool:
    """Return whether a model is one that `write_split` knows."""
    config = model.config
    return (
        config.model_type == "bert"
        and model.structure == "context-first"
        and model.safe is None
        and config.hidden_act == "gelu"
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def write_split(model: RuleReader, path: Path, seen: Mapping[str, Observed] | None = None) -> None:
    """Write the graph.

    Args:
        model: the reader; `can_split` holds.
        path: of the ONNX file.
        seen: inputs of the linear layers (`observe`), by which they are cut to int8; None: fp32.
    """
    writer = _Writer(model, seen)
    writer.write()
    onnx.save(writer.finished(), str(path))


class _Writer:
    """The nodes and weights so far."""

    def __init__(self, model: RuleReader, seen: Mapping[str, Observed] | None) -> None:
        self._weights = {k: v.detach().float().numpy() for k, v in model.state_dict().items()}
        self._seen = seen
        config = model.config
        self._layers, self._hidden = int(config.num_hidden_layers), int(config.hidden_size)
        self._heads = int(config.num_attention_heads)
        self._size = self._hidden // self._heads
        self._epsilon = float(config.layer_norm_eps)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[int, ...], str] = {}
        self._scalings: dict[str, Scaling] = {}

    def write(self) -> None:
        """Write embeddings, layers and head."""
        self._shapes()
        x = self._embedded()
        for layer in range(self._layers - 1):
            x = self._layer(layer, x)
        x = self._last(self._layers - 1, x)
        x = self._op("Tanh", self._op("Gemm", x, self._w("dense.weight"), self._w("dense.bias"), transB=1))
        x = self._op("Gemm", x, self._w("out.weight"), self._w("out.bias"), transB=1)
        self._nodes.append(helper.make_node("Reshape", [x, self._ints(-1)], ["logits"]))

    def finished(self) -> onnx.ModelProto:
        """Return the model."""
        floats, ints, value = TensorProto.FLOAT, TensorProto.INT64, helper.make_tensor_value_info
        inputs = [value("ids", ints, ["T"]), value("positions", ints, ["T"]), value("mask", floats, ["T", "S"])]
        inputs += [value("rules", ints, ["R", "L"]), value("rules_mask", floats, ["R", 1, "L"])]
        outputs = [value("logits", floats, ["R"])]
        for layer in range(self._layers):
            for name in ("k", "v"):
                inputs.append(value(f"past_{name}{layer}", floats, [self._heads, "P", self._size]))
                outputs.append(value(f"{name}{layer}", floats, [self._heads, "T", self._size]))
        graph = helper.make_graph(self._nodes, "csrm", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def _shapes(self) -> None:
        shape = self._op("Shape", "rules")
        rules, length = self._op("Gather", shape, self._ints(0)), self._op("Gather", shape, self._ints(1))
        flat, heads, size = self._op("Mul", rules, length), self._ints(self._heads), self._ints(self._size)
        self._streams = self._op("Concat", self._op("Shape", "ids"), flat, axis=0)
        self._length = length
        self._by_rule = self._op("Concat", rules, length, heads, size, axis=0)  # R, L, h, d
        self._by_token = self._op("Concat", heads, flat, size, axis=0)  # h, RL, d
        self._own = self._op("Concat", heads, flat, length, axis=0)  # h, RL, L
        self._own_rules = self._op("Concat", heads, rules, length, length, axis=0)  # h, R, L, L
        self._rows = self._op("Concat", rules, length, self._ints(self._hidden), axis=0)  # R, L, H
        columns = self._op("Gather", self._op("Shape", "mask"), self._ints(1))
        self._columns = self._op("Concat", columns, length, axis=0)  # S, L

    def _embedded(self) -> str:
        """Return the embedded conversation and rules as rows of one matrix (T + RL, H)."""
        if self._seen is not None:
            s8, scales = quantize_weight(self._weights["backbone.embeddings.word_embeddings.weight"])
            self._words_s8 = self._constant(s8), self._constant(scales[:, None])
        at = "backbone.embeddings."
        places, kinds = (self._weights[f"{at}{n}_embeddings.weight"] for n in ("position", "token_type"))
        table = self._constant(places)
        talk = self._op("Add", self._words("ids"), self._op("Gather", table, "positions"))
        counted = self._op("Slice", table, self._ints(0), self._length, self._ints(0))
        rules = self._op("Add", self._words("rules"), counted)
        rules = self._op("Reshape", rules, self._ints(-1, self._hidden))
        talk, rules = (self._op("Add", x, self._constant(kinds[i])) for x, i in ((talk, 1), (rules, 0)))
        return self._normal(self._op("Concat", talk, rules, axis=0), f"{at}LayerNorm")

    def _words(self, ids: str) -> str:
        name = "backbone.embeddings.word_embeddings.weight"
        if self._seen is None:
            return self._op("Gather", self._w(name), ids)
        table, scale = self._words_s8
        values = self._op("Cast", self._op("Gather", table, ids), to=TensorProto.FLOAT)
        return self._op("Mul", values, self._op("Gather", scale, ids))

    def _layer(self, layer: int, x: str) -> str:
        """Return the rows (T + RL, H) after a layer."""
        at = f"backbone.encoder.layer.{layer}.attention."
        q, k, v = self._linears(x, at, _QKV)
        (qc, qr), (kc, kr), (vc, vr) = (self._split(y, self._streams, 0) for y in (q, k, v))
        keys, values = self._conversation(layer, kc, vc)
        own_keys, own_values = self._of_rules(kr), self._of_rules(vr)
        scores = self._op("Add", self._product(self._by_head(qc), keys), "mask")
        talk = self._op("MatMul", self._op("Softmax", scores, axis=-1), values)
        qr = self._of_rules(qr)
        own = self._op("Add", self._product(qr, own_keys, 4), "rules_mask")
        shared = self._product(self._op("Reshape", qr, self._by_token), keys)
        weights = self._op("Softmax", self._op("Concat", shared, self._op("Reshape", own, self._own), axis=2), axis=-1)
        shared, own = self._split(weights, self._columns, 2)
        own = self._op("MatMul", self._op("Reshape", own, self._own_rules), own_values)
        rules = self._op("Add", self._op("MatMul", shared, values), self._op("Reshape", own, self._by_token))
        read = self._op("Concat", talk, rules, axis=1)  # h, T + RL, d
        return self._rest(layer, read, x)

    def _last(self, layer: int, x: str) -> str:
        """Return the rows (R, H) of the tokens at which rules are read, after the last layer."""
        at = f"backbone.encoder.layer.{layer}.attention."
        k, v = self._linears(x, at, _QKV[1:])
        (kc, kr), (vc, vr) = (self._split(y, self._streams, 0) for y in (k, v))
        keys, values = self._conversation(layer, kc, vc)
        _, rows = self._split(x, self._streams, 0)
        first = self._op("Gather", self._op("Reshape", rows, self._rows), self._constant(np.int64(0)), axis=1)
        q = self._by_head(self._linears(first, at, _QKV[:1])[0])  # h, R, d
        one = self._op("Unsqueeze", q, self._ints(2))
        own = self._op("Add", self._product(one, self._of_rules(kr), 4), "rules_mask")  # h, R, 1, L
        own = self._op("Squeeze", own, self._ints(2))
        weights = self._op("Softmax", self._op("Concat", self._product(q, keys), own, axis=2), axis=-1)
        shared, own = self._split(weights, self._columns, 2)
        own = self._op("MatMul", self._op("Unsqueeze", own, self._ints(2)), self._of_rules(vr))
        read = self._op("Add", self._op("MatMul", shared, values), self._op("Squeeze", own, self._ints(2)))
        return self._rest(layer, read, first)

    def _rest(self, layer: int, read: str, x: str) -> str:
        """Return a layer's output from what its heads read (h, N, d) and its input (N, H)."""
        at = f"backbone.encoder.layer.{layer}."
        y = self._op("Reshape", self._op("Transpose", read, perm=[1, 0, 2]), self._ints(-1, self._hidden))
        y = self._linear(y, f"{at}attention.output.dense", divided=True)
        x = self._normal(self._op("Add", y, x), f"{at}attention.output.LayerNorm")
        y = self._linear(x, f"{at}intermediate.dense", bias=False)
        y = self._op("BiasGelu", y, self._w(f"{at}intermediate.dense.bias"), domain=_MS)
        return self._normal(self._op("Add", self._linear(y, f"{at}output.dense"), x), f"{at}output.LayerNorm")

    def _conversation(self, layer: int, k: str, v: str) -> tuple[str, str]:
        """Return keys and values (h, S, d) of the whole conversation; give out those of this run."""
        found = []
        for name, rows in (("k", k), ("v", v)):
            x = self._op("Reshape", rows, self._ints(-1, self._heads, self._size))
            self._nodes.append(helper.make_node("Transpose", [x], [f"{name}{layer}"], perm=[1, 0, 2]))
            found.append(self._op("Concat", f"past_{name}{layer}", f"{name}{layer}", axis=1))
        return found[0], found[1]

    def _by_head(self, rows: str) -> str:
        x = self._op("Reshape", rows, self._ints(-1, self._heads, self._size))
        return self._op("Transpose", x, perm=[1, 0, 2])

    def _of_rules(self, rows: str) -> str:
        """Return rows (RL, H) as (h, R, L, d)."""
        return self._op("Transpose", self._op("Reshape", rows, self._by_rule), perm=[2, 0, 1, 3])

    def _product(self, queries: str, keys: str, rank: int = 3) -> str:
        """Return queries times keys transposed; ONNX Runtime folds the transposition into the product."""
        perm = [0, 2, 1] if rank == 3 else [0, 1, 3, 2]
        return self._op("MatMul", queries, self._op("Transpose", keys, perm=perm))

    def _linears(self, x: str, at: str, names: tuple[str, ...]) -> list[str]:
        """Return query, key or value of rows; queries come divided by the root of d, values for int8's sake."""
        weights = {n: self._weights[f"{at}self.{n}.weight"] for n in _QKV}
        biases = {n: self._weights[f"{at}self.{n}.bias"] for n in _QKV}
        root = np.float32(self._size**-0.5)
        weights["query"], biases["query"] = weights["query"] * root, biases["query"] * root
        if self._seen is None:
            return [self._op("Add", self._times(x, weights[n]), self._constant(biases[n])) for n in names]
        # What the heads read is a mean of values: dividing these divides it, and costs nothing.
        later = self._scaling(f"{at}output.dense", self._weights[f"{at}output.dense.weight"]).factors
        weights["value"], biases["value"] = weights["value"] / later[:, None], biases["value"] / later
        scaling = self._scaling(f"{at}self.query", np.concatenate([weights[n] for n in _QKV]))
        u8 = self._u8(self._op("Mul", x, self._constant(1.0 / scaling.factors)), scaling)
        return [self._multiplied(u8, scaling, weights[n], biases[n]) for n in names]

    def _linear(self, x: str, name: str, *, bias: bool = True, divided: bool = False) -> str:
        weight, shift = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"] if bias else None
        if self._seen is None:
            y = self._times(x, weight)
            return self._op("Add", y, self._constant(shift)) if shift is not None else y
        scaling = self._scaling(name, weight)
        if not divided:
            x = self._op("Mul", x, self._constant(1.0 / scaling.factors))
        return self._multiplied(self._u8(x, scaling), scaling, weight, shift)

    def _scaling(self, name: str, weight: NDArray[np.float32]) -> Scaling:
        assert self._seen is not None
        if name not in self._scalings:
            self._scalings[name] = choose(self._seen[name.removeprefix("backbone.")], weight)
        return self._scalings[name]

    def _u8(self, x: str, scaling: Scaling) -> str:
        return self._op("QuantizeLinear", x, self._constant(scaling.scale), self._constant(scaling.zero))

    def _multiplied(self, u8: str, s: Scaling, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> str:
        """Return u8 rows times an s8 weight, in fp32."""
        s8, scales = quantize_weight(weight * s.factors)
        inputs = [u8, self._constant(s8.T), self._constant(s.scale), self._constant(scales), self._constant(s.zero), ""]
        inputs += [self._constant(bias)] if bias is not None else []
        return self._op("MatMulIntegerToFloat", *inputs, domain=_MS)

    def _times(self, x: str, weight: NDArray[np.float32]) -> str:
        return self._op("MatMul", x, self._constant(weight.T))

    def _normal(self, x: str, name: str) -> str:
        weights = self._w(f"{name}.weight"), self._w(f"{name}.bias")
        return self._op("LayerNormalization", x, *weights, axis=-1, epsilon=self._epsilon)

    def _w(self, name: str) -> str:
        return self._constant(self._weights[name])

    def _constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"c{len(self._constants)}"
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _ints(self, *values: int) -> str:
        if values not in self._known:
            self._known[values] = self._constant(np.array(values, np.int64))
        return self._known[values]

    def _op(self, kind: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        return self._ops(1, kind, *inputs, domain=domain, **attributes)[0]

    def _ops(self, count: int, kind: str, *inputs: str, domain: str = "", **attributes: Attribute) -> list[str]:
        name = f"{kind}{len(self._nodes)}"
        outputs = [f"{name}_{i}" for i in range(count)]
        node = helper.make_node(kind, list(inputs), outputs, name=name, domain=domain, **attributes)  # type: ignore[arg-type]
        self._nodes.append(node)
        return outputs

    def _split(self, x: str, sizes: str, axis: int) -> tuple[str, str]:
        first, second = self._ops(2, "Split", x, sizes, axis=axis)
        return first, second
