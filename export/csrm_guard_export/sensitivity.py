"""Which parts of a model int8 hurts: each alone is cut to int8 and scored against fp32 on held-out rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from csrm_guard.graphs import SplitGraph
from csrm_guard.prefixes import PrefixCache
from csrm_guard.rows import Row, views
from csrm_guard.template import render_rule
from csrm_guard_export.nodes import WORDS, matches, quantizable
from csrm_guard_export.ranges import Observed
from csrm_guard_export.split import write_split
from csrm_guard_train.checkpoint import Trained
from csrm_guard_train.metrics import auroc

__all__ = ["Effect", "layers", "parts", "sensitivity", "worst_first"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """What int8 in one part does, everything else in fp32.

    Attributes:
        part: a pattern of `quantizable` names.
        mean, largest: of the absolute logit differences.
        auroc_drop: of a row's largest rule logit; below 0: better by chance.
    """

    part: str
    mean: float
    largest: float
    auroc_drop: float


def parts(names: Sequence[str]) -> list[str]:
    """Return the patterns that are tried: all, the word embeddings, each layer, each kind of linear layer."""
    kinds = dict.fromkeys("encoder.layer.*." + name.split(".", 3)[3] for name in names if name != WORDS)
    return ["*", WORDS, *layers(names), *kinds]


def layers(names: Sequence[str]) -> list[str]:
    """Return a pattern for each layer."""
    return list(dict.fromkeys(".".join(name.split(".")[:3]) + ".*" for name in names if name != WORDS))


def sensitivity(
    trained: Trained,
    rows: Sequence[Row],
    seen: Mapping[str, Observed],
    *,
    wanted: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Iterator[Effect]:
    """Yield the effect of each part.

    Args:
        trained: `can_split` holds for its model.
        rows: labelled, with policies.
        seen: of `observe`.
        wanted: parts; None: all of `parts`.
        progress: told what is tried.
    """
    names = quantizable(trained.model)
    y = np.array([bool(row.label) for row in rows], np.float64)
    exact = _scored(trained, rows, None, ())
    for part in wanted if wanted is not None else parts(names):
        progress(part)
        cut = _scored(trained, rows, seen, [name for name in names if not matches(name, part)])
        difference = np.abs(np.concatenate(exact) - np.concatenate(cut))
        tops = [np.array([z.max() for z in logits]) for logits in (exact, cut)]
        drop = auroc(y, tops[0]) - auroc(y, tops[1])
        yield Effect(part, float(difference.mean()), float(difference.max()), float(drop))


def worst_first(effects: Sequence[Effect]) -> list[str]:
    """Return the parts by their mean logit error, the worst first."""
    return [e.part for e in sorted(effects, key=lambda e: -e.mean)]


def _scored(
    trained: Trained, rows: Sequence[Row], seen: Mapping[str, Observed] | None, keep: Sequence[str]
) -> list[Floats]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_split(trained.model, path, seen, keep)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [_row_logits(SplitGraph(session, PrefixCache(0)), trained, row) for row in rows]


def _row_logits(graph: SplitGraph, trained: Trained, row: Row) -> Floats:
    """Return the largest logit of each rule over a row's windows (R,); of a long rule, its first chunk's."""
    assert row.policy is not None, row.id
    rules = [trained.encoder.rule(render_rule(rule))[0][0] for rule in row.policy.rules]
    windows = [w for view in views(row.messages, row.scope) for w in trained.encoder.conversation(view).windows]
    found: Floats = graph.read_all(windows, rules).max(axis=0).astype(np.float64)
    return found
