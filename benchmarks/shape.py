"""The shape of the shipped model, read from its graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from csrm_guard import OnnxRewardModel, ScoringRequest
from csrm_guard.graphs import alike


@dataclass(frozen=True, slots=True)
class Shape:
    """Of an encoder of the BERT class: layers of attention in heads, and of two linear layers."""

    layers: int
    hidden: int
    heads: int
    inner: int

    @classmethod
    def of(cls, folder: Path) -> Shape:
        """Return the shape of a model directory whose graph is of the split or batched layout."""
        graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
        pasts = [i for i in graph.input if i.name.startswith("past_k")]
        heads = pasts[0].type.tensor_type.shape.dim[-3].dim_value
        constants = {c.name: c.dims for c in graph.initializer}
        gelu = next(node for node in graph.node if node.op_type == "BiasGelu")
        norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
        return cls(len(pasts), constants[norm.input[1]][0], heads, constants[gelu.input[1]][0])

    def products(self, model: OnnxRewardModel, asked: ScoringRequest) -> int:
        """Return the multiplications of the linear layers in one check of one window, as the split graph runs them."""
        lengths = [len(model.encoder.rule(rule.text)[0][0]) for rule in asked.rules]
        window = model.encoder.conversation(asked.messages).windows[0]
        padded = sum(len(group) * max(lengths[i] for i in group) for group in alike(lengths))
        rows = len(window.context) + len(window.judged) + padded
        pair, each = 2 * self.hidden**2, 4 * self.hidden**2 + 2 * self.hidden * self.inner
        # The last layer: keys and values of all tokens, the rest for one token a rule.
        return (self.layers - 1) * rows * each + rows * pair + len(lengths) * (each - pair)
