"""What it would save, and change, to keep the judged sentences of a growing answer: python benchmarks/reuse.py.

`read again`: each sentence is judged with all before it, read from their beginning, as streams are. `kept`: the keys
and values of the sentences before are kept, so that these no longer read the ones that follow.
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import machine
import numpy as np
from numpy.typing import NDArray

from csrm_guard import Message, OnnxRewardModel, ScoringRequest
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.encoding import Window
from csrm_guard.graphs import SplitGraph
from csrm_guard.rows import Row, parse_row, read_jsonl
from csrm_guard.sentences import sentence_spans

DEV = Path(__file__).parents[1] / "train" / "data" / "dev"
COUNT, RULES, SENTENCES = 100, 8, 3


def answers() -> list[Row]:
    rows = [
        parse_row(data, str(number))
        for name in ("authored_dev", "transcripts_dev")
        for number, data in read_jsonl(DEV / f"{name}.jsonl.gz")
    ]
    long = [r for r in rows if r.messages[-1].role == "assistant"]
    long = [r for r in long if len(sentence_spans(r.messages[-1].content)) >= SENTENCES]
    np.random.default_rng(0).shuffle(long)  # type: ignore[arg-type]
    return long[:COUNT]


def growing(model: OnnxRewardModel, row: Row) -> list[Window]:
    """Return the windows of the beginnings of an answer, one sentence longer each; none if it needs several."""
    text = row.messages[-1].content
    found = [
        model.encoder.conversation((*row.messages[:-1], Message("assistant", text[:end]))).windows
        for _, end in sentence_spans(text)
    ]
    return [windows[0] for windows in found] if all(len(windows) == 1 for windows in found) else []


def kept(graph: SplitGraph, windows: list[Window], rules: list[tuple[int, ...]]) -> tuple[NDArray[np.float32], int]:
    """Return logits (sentences, R), and the tokens of the conversation that were run."""
    past, logits, before, tokens = graph._nothing, list[NDArray[np.float32]](), 0, 0
    for n, window in enumerate(windows):
        context, new = window.context if n == 0 else (), window.judged[before:]
        found, made = graph._run(context, new, past, rules, True)
        past = tuple(np.concatenate([a, b], axis=1) for a, b in zip(past, made, strict=True))
        logits.append(found)
        before, tokens = len(window.judged), tokens + len(context) + len(new)
    return np.array(logits), tokens


def main() -> None:
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1, prefix_bytes=0)
    graph = model.graph
    assert isinstance(graph, SplitGraph)
    spent, tokens = {"read again": 0.0, "kept": 0.0}, {"read again": 0, "kept": 0}
    apart, agree, flipped = list[float](), list[bool](), list[bool]()
    for row in answers():
        assert row.policy is not None
        norms = tuple(rule for rule in row.policy.rules if rule.stance != "permit")[:RULES]
        permits = tuple(rule for rule in row.policy.rules if rule.stance == "permit")
        rules = [chunk.ids for chunk in model._chunks(ScoringRequest(row.messages, norms, permits))]
        windows = growing(model, row)
        if not windows or any(a.judged == b.judged for a, b in pairwise(windows)):
            continue
        began = time.process_time()
        exact = np.array([graph.read(window, rules) for window in windows])
        middle = time.process_time()
        other, run = kept(graph, windows, rules)
        spent["read again"] += middle - began
        spent["kept"] += time.process_time() - middle
        tokens["read again"] += sum(len(window.context) + len(window.judged) for window in windows)
        tokens["kept"] += run
        over = [model.manifest.calibration.q(z.astype(np.float64), "response") >= 0.5 for z in (exact, other)]
        apart += list(np.abs(exact - other)[1:].ravel())
        agree += list((over[0] == over[1])[1:].ravel())
        flipped.append(bool(over[0][-1].any() != over[1][-1].any()))
    machine.write(
        "reuse",
        "Keeping the judged sentences of a growing answer",
        [(
            f"{len(flipped)} answers of at least {SENTENCES} sentences, up to {RULES} rules each, one thread",
            [
                {"way": way, "tokens of the conversation run": tokens[way], "processor seconds": f"{spent[way]:.2f}"}
                for way in spent
            ],
        )],
        [
            f"Mean difference of a rule's logit {np.mean(apart):.2f} (90th percentile {np.quantile(apart, 0.9):.2f}, "
            f"largest {max(apart):.2f}); rules on the same side of .5: {np.mean(agree):.1%}; "
            f"answers allowed by one and not by the other: {np.mean(flipped):.0%}.",
            f"Model {model.id}. {machine.machine()}.",
            "Command: `python benchmarks/reuse.py`.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
