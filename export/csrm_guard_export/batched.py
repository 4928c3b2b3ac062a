"""Write the batched graph of a BERT-class reader: several windows in one run, for accelerators, in fp16 or fp32.

It computes what the split graph computes. Tokens of all windows and of their rules stand in one matrix without padding,
where the linear layers run; attention gathers them into padded blocks. What is padding is masked for nothing: each
head's queries and keys have columns more, which hold 1 in every query and -10,000 in the key of padding. There are 8 of
them, since tensor cores want sizes that 8 divides.

Shapes: N tokens; W windows of T (padded), behind P that all of them share and that were read before; R rules of L
(padded) for each window; h heads of size d, of keys d + 8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from csrm_guard_export.nodes import QKV, Nodes
from csrm_guard_train.model import RuleReader

__all__ = ["write_batched"]

_EXTRA = 8
_HIDDEN = np.float32(-1e4)


def write_batched(model: RuleReader, path: Path, *, half: bool) -> None:
    """Write the graph; `half`: in fp16, with logits in fp32."""
    writer = _Writer(model, None, half=half)
    writer.write()
    onnx.save(writer.finished(), str(path))


class _Writer(Nodes):
    """The batched graph."""

    def write(self) -> None:
        """Write embeddings, layers and head."""
        self._keys = self.size + _EXTRA
        self._shapes()
        x = self._embedded()
        for layer in range(self.layers - 1):
            x = self._layer(layer, x)
        self.logits(self._last(self.layers - 1, x), self._logits_shape)

    def finished(self) -> onnx.ModelProto:
        """Return the model."""
        kind = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        ints, value = TensorProto.INT64, helper.make_tensor_value_info
        inputs = [value("ids", ints, ["N"]), value("positions", ints, ["N"]), value("kinds", ints, ["N"])]
        inputs += [value("talk", ints, ["W", "T"]), value("mask", kind, ["W", 1, "T", "T"])]
        inputs += [value("rules", ints, ["W", "R", "L"]), value("order", ints, ["N"])]
        outputs = [value("logits", TensorProto.FLOAT, ["W", "R"])]
        for layer in range(self.layers):
            for name, size in (("k", self._keys), ("v", self.size)):
                inputs.append(value(f"past_{name}{layer}", kind, [1, self.heads, "P", size]))
                outputs.append(value(f"{name}{layer}", kind, ["W", self.heads, "T", size]))
        return self.model(inputs, outputs)

    def _shapes(self) -> None:
        """Write where tokens stand: padding is N in `talk` and `rules`, and any row where its place must exist."""
        count = self.op("Shape", "ids")
        last = self.op("Sub", count, self.ints(1))
        shape = self.op("Shape", "rules")
        windows, rules, length = (self.op("Gather", shape, self.ints(i)) for i in range(3))
        flat, heads, rest = self.op("Mul", rules, length), self.ints(self.heads), self.ints(-1)
        by_window = self.op("Concat", windows, flat, axis=0)  # W, RL
        there = self.op("Min", "rules", last)
        self._talk = self.op("Min", "talk", last)
        self._rules = self.op("Reshape", there, by_window)
        self._rules_or_padding = self.op("Reshape", "rules", by_window)
        first = self.op("Gather", there, self.constant(np.int64(0)), axis=2)
        self._first = self.op("Reshape", first, rest)  # WR
        self._by_rule = self.op("Concat", windows, heads, rules, length, rest, axis=0)  # W, h, R, L, .
        self._by_token = self.op("Concat", windows, heads, flat, rest, axis=0)  # W, h, RL, .
        self._heads_of_rules = self.op("Concat", windows, rules, heads, rest, axis=0)  # W, R, h, .
        self._logits_shape = self.op("Concat", windows, rules, axis=0)
        before = self.op("Gather", self.op("Shape", "past_k0"), self.ints(2))
        talk = self.op("Gather", self.op("Shape", "talk"), self.ints(1))
        self._talk_columns = self.op("Concat", before, talk, axis=0)  # P, T
        self._columns = self.op("Concat", before, talk, length, axis=0)  # P, T, L
        padding = np.zeros((self.heads, self._keys), np.float32)
        padding[:, self.size] = _HIDDEN
        self._padding = self.constant(padding.reshape(1, -1))

    def _embedded(self) -> str:
        """Return the embedded tokens (N, H)."""
        at = "backbone.embeddings."
        table, kinds = (self.w(f"{at}{n}_embeddings.weight") for n in ("position", "token_type"))
        places = self.op("Add", self.op("Gather", table, "positions"), self.op("Gather", kinds, "kinds"))
        return self.normal(self.op("Add", self.words("ids"), places), f"{at}LayerNorm")

    def _layer(self, layer: int, x: str) -> str:
        """Return the rows (N, H) after a layer."""
        q, k, v = self.linears(x, layer, QKV, extra=_EXTRA)
        keys, values, own_keys, own_values = self._read(layer, k, v)
        qc, qr = self._gathered(q, self._talk, self._keys), self._gathered(q, self._rules, self._keys)
        past = f"past_k{layer}", f"past_v{layer}"
        now = self.op("Add", self.product(qc, keys), "mask")
        scores = self.op("Concat", self.product(qc, past[0]), now, axis=3)
        before, now = self.ops(2, "Split", self.op("Softmax", scores, axis=-1), self._talk_columns, axis=3)
        talk = self.op("Add", self.op("MatMul", before, past[1]), self.op("MatMul", now, values))
        own = self.product(self.op("Reshape", qr, self._by_rule), own_keys)
        own = self.op("Reshape", own, self._by_token)
        shared = self.product(qr, past[0]), self.product(qr, keys)
        weights = self.op("Softmax", self.op("Concat", *shared, own, axis=3), axis=-1)
        before, now, own = self.ops(3, "Split", weights, self._columns, axis=3)
        own = self.op("Reshape", self.op("MatMul", self.op("Reshape", own, self._by_rule), own_values), self._by_token)
        rules = self._sum(self.op("MatMul", before, past[1]), self.op("MatMul", now, values), own)
        rows = self.op("Concat", self._by_row(talk), self._by_row(rules), axis=0)
        return self.rest(layer, self.op("Gather", rows, "order"), x)

    def _last(self, layer: int, x: str) -> str:
        """Return the rows (WR, H) of the tokens at which rules are read, after the last layer."""
        k, v = self.linears(x, layer, QKV[1:], extra=_EXTRA)
        keys, values, own_keys, own_values = self._read(layer, k, v)
        first = self.op("Gather", x, self._first)
        q = self.op("Reshape", self.linears(first, layer, QKV[:1], extra=_EXTRA)[0], self._heads_of_rules)
        q = self.op("Transpose", q, perm=[0, 2, 1, 3])  # W, h, R, d + 8
        own = self.op("Squeeze", self.product(self.op("Unsqueeze", q, self.ints(3)), own_keys), self.ints(3))
        shared = self.product(q, f"past_k{layer}"), self.product(q, keys)
        weights = self.op("Softmax", self.op("Concat", *shared, own, axis=3), axis=-1)
        before, now, own = self.ops(3, "Split", weights, self._columns, axis=3)
        own = self.op("Squeeze", self.op("MatMul", self.op("Unsqueeze", own, self.ints(3)), own_values), self.ints(3))
        past = self.op("MatMul", before, f"past_v{layer}")
        return self.rest(layer, self._by_row(self._sum(past, self.op("MatMul", now, values), own)), first)

    def _read(self, layer: int, k: str, v: str) -> tuple[str, str, str, str]:
        """Return keys and values of the conversations (W, h, T, .), which go out, and of rules (W, h, R, L, .)."""
        k = self.op("Concat", k, self._padding, axis=0)
        keys = self._gathered(k, "talk", self._keys, f"k{layer}")
        values = self._gathered(v, self._talk, self.size, f"v{layer}")
        own_keys = self.op("Reshape", self._gathered(k, self._rules_or_padding, self._keys), self._by_rule)
        own_values = self.op("Reshape", self._gathered(v, self._rules, self.size), self._by_rule)
        return keys, values, own_keys, own_values

    def _gathered(self, rows: str, places: str, size: int, out: str | None = None) -> str:
        """Return rows (N, h * size) at places (W, n) as (W, h, n, size)."""
        y = self.op("Reshape", self.op("Gather", rows, places), self.ints(0, 0, self.heads, size))
        if out is None:
            return self.op("Transpose", y, perm=[0, 2, 1, 3])
        self.nodes.append(helper.make_node("Transpose", [y], [out], perm=[0, 2, 1, 3]))
        return out

    def _by_row(self, read: str) -> str:
        """Return what heads read (W, h, n, d) as rows (Wn, H)."""
        return self.op("Reshape", self.op("Transpose", read, perm=[0, 2, 1, 3]), self.ints(-1, self.hidden))

    def _sum(self, *parts: str) -> str:
        first, *others = parts
        for other in others:
            first = self.op("Add", first, other)
        return first
