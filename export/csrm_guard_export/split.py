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

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from csrm_guard_export.nodes import QKV, Nodes
from csrm_guard_export.ranges import Observed
from csrm_guard_train.model import RuleReader

__all__ = ["write_split"]


def write_split(
    model: RuleReader, path: Path, seen: Mapping[str, Observed] | None = None, keep: Collection[str] = ()
) -> None:
    """Write the graph.

    Args:
        model: the reader; `can_split` holds.
        path: of the ONNX file.
        seen: inputs of the linear layers (`observe`), by which they are cut to int8; None: fp32.
        keep: patterns of `quantizable` names that stay in fp32.
    """
    writer = _Writer(model, seen, keep)
    writer.write()
    onnx.save(writer.finished(), str(path))


class _Writer(Nodes):
    """The split graph."""

    def write(self) -> None:
        """Write embeddings, layers and head."""
        self._shapes()
        x = self._embedded()
        for layer in range(self.layers - 1):
            x = self._layer(layer, x)
        self.logits(self._last(self.layers - 1, x), self.ints(-1))

    def finished(self) -> onnx.ModelProto:
        """Return the model."""
        floats, ints, value = TensorProto.FLOAT, TensorProto.INT64, helper.make_tensor_value_info
        inputs = [value("ids", ints, ["T"]), value("positions", ints, ["T"]), value("mask", floats, ["T", "S"])]
        inputs += [value("rules", ints, ["R", "L"]), value("rules_mask", floats, ["R", 1, "L"])]
        outputs = [value("logits", floats, ["R"])]
        for layer in range(self.layers):
            for name in ("k", "v"):
                inputs.append(value(f"past_{name}{layer}", floats, [self.heads, "P", self.size]))
                outputs.append(value(f"{name}{layer}", floats, [self.heads, "T", self.size]))
        return self.model(inputs, outputs)

    def _shapes(self) -> None:
        shape = self.op("Shape", "rules")
        rules, length = self.op("Gather", shape, self.ints(0)), self.op("Gather", shape, self.ints(1))
        flat, heads, size = self.op("Mul", rules, length), self.ints(self.heads), self.ints(self.size)
        self._streams = self.op("Concat", self.op("Shape", "ids"), flat, axis=0)
        self._length = length
        self._by_rule = self.op("Concat", rules, length, heads, size, axis=0)  # R, L, h, d
        self._by_token = self.op("Concat", heads, flat, size, axis=0)  # h, RL, d
        self._own = self.op("Concat", heads, flat, length, axis=0)  # h, RL, L
        self._own_rules = self.op("Concat", heads, rules, length, length, axis=0)  # h, R, L, L
        self._rows = self.op("Concat", rules, length, self.ints(self.hidden), axis=0)  # R, L, H
        columns = self.op("Gather", self.op("Shape", "mask"), self.ints(1))
        self._columns = self.op("Concat", columns, length, axis=0)  # S, L

    def _embedded(self) -> str:
        """Return the embedded conversation and rules as rows of one matrix (T + RL, H)."""
        at = "backbone.embeddings."
        places, kinds = (self.weights[f"{at}{n}_embeddings.weight"] for n in ("position", "token_type"))
        table = self.constant(places)
        talk = self.op("Add", self.words("ids"), self.op("Gather", table, "positions"))
        counted = self.op("Slice", table, self.ints(0), self._length, self.ints(0))
        rules = self.op("Add", self.words("rules"), counted)
        rules = self.op("Reshape", rules, self.ints(-1, self.hidden))
        talk, rules = (self.op("Add", x, self.constant(kinds[i])) for x, i in ((talk, 1), (rules, 0)))
        return self.normal(self.op("Concat", talk, rules, axis=0), f"{at}LayerNorm")

    def _layer(self, layer: int, x: str) -> str:
        """Return the rows (T + RL, H) after a layer."""
        (qc, qr), (kc, kr), (vc, vr) = (self._split(y, self._streams, 0) for y in self.linears(x, layer, QKV))
        keys, values = self._conversation(layer, kc, vc)
        scores = self.op("Add", self.product(self._by_head(qc), keys), "mask")
        talk = self.op("MatMul", self.op("Softmax", scores, axis=-1), values)
        qr = self._of_rules(qr)
        own = self.op("Add", self.product(qr, self._of_rules(kr)), "rules_mask")
        shared = self.product(self.op("Reshape", qr, self._by_token), keys)
        weights = self.op("Softmax", self.op("Concat", shared, self.op("Reshape", own, self._own), axis=2), axis=-1)
        shared, own = self._split(weights, self._columns, 2)
        own = self.op("MatMul", self.op("Reshape", own, self._own_rules), self._of_rules(vr))
        rules = self.op("Add", self.op("MatMul", shared, values), self.op("Reshape", own, self._by_token))
        return self.rest(layer, self._by_row(self.op("Concat", talk, rules, axis=1)), x)  # h, T + RL, d

    def _last(self, layer: int, x: str) -> str:
        """Return the rows (R, H) of the tokens at which rules are read, after the last layer."""
        (kc, kr), (vc, vr) = (self._split(y, self._streams, 0) for y in self.linears(x, layer, QKV[1:]))
        keys, values = self._conversation(layer, kc, vc)
        _, rows = self._split(x, self._streams, 0)
        first = self.op("Gather", self.op("Reshape", rows, self._rows), self.constant(np.int64(0)), axis=1)
        q = self._by_head(self.linears(first, layer, QKV[:1])[0])  # h, R, d
        one = self.op("Unsqueeze", q, self.ints(2))
        own = self.op("Add", self.product(one, self._of_rules(kr)), "rules_mask")  # h, R, 1, L
        own = self.op("Squeeze", own, self.ints(2))
        weights = self.op("Softmax", self.op("Concat", self.product(q, keys), own, axis=2), axis=-1)
        shared, own = self._split(weights, self._columns, 2)
        own = self.op("MatMul", self.op("Unsqueeze", own, self.ints(2)), self._of_rules(vr))
        read = self.op("Add", self.op("MatMul", shared, values), self.op("Squeeze", own, self.ints(2)))
        return self.rest(layer, self._by_row(read), first)

    def _conversation(self, layer: int, k: str, v: str) -> tuple[str, str]:
        """Return keys and values (h, S, d) of the whole conversation; give out those of this run."""
        found = []
        for name, rows in (("k", k), ("v", v)):
            x = self.op("Reshape", rows, self.ints(-1, self.heads, self.size))
            self.nodes.append(helper.make_node("Transpose", [x], [f"{name}{layer}"], perm=[1, 0, 2]))
            found.append(self.op("Concat", f"past_{name}{layer}", f"{name}{layer}", axis=1))
        return found[0], found[1]

    def _by_head(self, rows: str) -> str:
        x = self.op("Reshape", rows, self.ints(-1, self.heads, self.size))
        return self.op("Transpose", x, perm=[1, 0, 2])

    def _by_row(self, read: str) -> str:
        """Return what heads read (h, N, d) as rows (N, H)."""
        return self.op("Reshape", self.op("Transpose", read, perm=[1, 0, 2]), self.ints(-1, self.hidden))

    def _of_rules(self, rows: str) -> str:
        """Return rows (RL, H) as (h, R, L, d)."""
        return self.op("Transpose", self.op("Reshape", rows, self._by_rule), perm=[2, 0, 1, 3])

    def _split(self, x: str, sizes: str, axis: int) -> tuple[str, str]:
        first, second = self.ops(2, "Split", x, sizes, axis=axis)
        return first, second
