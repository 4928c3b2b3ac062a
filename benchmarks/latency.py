"""Latency of one check: python benchmarks/latency.py.

By rules and tokens, with its breakdown; beside one plain int8 forward of the same backbone over the tokens that must be
run, and beside the peers' ways at 8 rules x 128 tokens; the share of the int8 peak that
the linear layers reach.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import machine
import numpy as np
import onnxruntime
from peers import cross_encoder, onnx_plain, ways
from questions import policy, request, tokens_run

from csrm_guard import Guard, OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT

ROUNDS = 15


def by_size(model: OnnxRewardModel, rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for tokens in (32, 128, 512, 4096):
        for rules in (1, 4, 8, 16, 32, 64):
            if tokens == 4096 and rules > 16:
                continue  # minutes a cell: each of 21 windows reads every rule
            guard = Guard(policy(rules), model)
            asked = request(model, rules, tokens)
            cold = machine.once(lambda g=guard, t=asked.messages: g.check(list(t)))  # type: ignore[misc]
            verdicts = [guard.check(list(asked.messages)) for _ in range(3 if tokens == 4096 else rounds)]
            total = [v.timings.tokenise + v.timings.run + v.timings.decide for v in verdicts]
            parts = {
                n: statistics.median(getattr(v.timings, n) for v in verdicts) for n in ("tokenise", "run", "decide")
            }
            rows.append({
                "judged tokens": tokens, "rules": rules, "tokens run": tokens_run(model, asked),
                "cold policy, ms": f"{cold * 1e3:.1f}", "warm, ms (quartiles)": machine.spread(total),
                **{n: f"{seconds * 1e3:.2f}" for n, seconds in parts.items()},
            })  # fmt: skip
    return rows


def linear(rows: list[dict[str, object]], tokens: int) -> str:
    """Return the least-squares line of milliseconds over rules."""
    own = [r for r in rows if r["judged tokens"] == tokens]
    x = np.array([float(str(r["rules"])) for r in own])
    y = np.array([float(str(r["warm, ms (quartiles)"]).split()[0]) for r in own])
    slope, intercept = np.polyfit(x, y, 1)
    r2 = 1 - ((y - slope * x - intercept) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return f"{tokens} tokens: {intercept:.1f} ms + {slope:.2f} ms per rule, R^2 {r2:.3f}"


def beside_peers(model: OnnxRewardModel, rounds: int) -> list[dict[str, object]]:
    asked = request(model, 8, 128)
    tokens = tokens_run(model, asked)
    pairs = [(rule.text, asked.messages[0].content) for rule in asked.rules]
    calls: dict[str, Callable[[], object]] = {"csrm-guard, one check": lambda: model.score([asked])}
    calls[f"plain int8 forward of {tokens} tokens (ONNX Runtime)"] = onnx_plain(cross_encoder(), tokens)
    calls |= {name: partial(score, pairs) for name, score in ways().items()}
    times = machine.alternate(calls, rounds)
    ours = times["csrm-guard, one check"]
    return [
        {"way": name, "ms (quartiles)": machine.spread(t), "times ours": f"{machine.ratio(t, ours):.2f}"}
        for name, t in times.items()
    ]


def operators(rounds: int) -> tuple[list[dict[str, object]], float]:
    """Return where one thread's time goes, and GOP/s of the int8 products."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads = True, 1
    options.profile_file_prefix = str(Path(gettempdir()) / "csrm-guard-profile")
    session = onnxruntime.InferenceSession(str(DEFAULT_ARTIFACT / "model.onnx"), options)
    plain = OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1, prefix_bytes=0)
    model = OnnxRewardModel(plain.manifest, plain.encoder, session, prefix_bytes=0)
    asked = request(model, 8, 128)
    for _ in range(rounds):
        model.score([asked])
    path = Path(session.end_profiling())
    events = [e for e in json.loads(path.read_text()) if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    path.unlink()
    spent: dict[str, float] = {}
    for event in events:
        spent[event["args"]["op_name"]] = spent.get(event["args"]["op_name"], 0.0) + event["dur"] / 1e3 / rounds
    total = sum(spent.values())
    rows: list[dict[str, object]] = [
        {"operator": name, "ms": f"{ms:.2f}", "share": f"{ms / total:.0%}"}
        for name, ms in sorted(spent.items(), key=lambda item: -item[1])[:12]
    ]
    hidden, inner, layers = 384, 1536, 6
    rules = len(asked.rules) * max(len(plain.encoder.rule(rule.text)[0][0]) for rule in asked.rules)
    rows_run = len(plain.encoder.conversation(asked.messages).windows[0].judged) + rules
    each = 4 * hidden * hidden + 2 * hidden * inner
    # The last layer: keys and values of all tokens, the rest for one token a rule.
    work = (layers - 1) * rows_run * each + rows_run * 2 * hidden * hidden
    work += len(asked.rules) * (each - 2 * hidden * hidden)
    return rows, 2 * work / (spent["MatMulIntegerToFloat"] / 1e3) / 1e9


def main() -> None:
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT, prefix_bytes=0)
    before, one = machine.probe(), machine.probe(1)
    sizes = by_size(model, ROUNDS)
    peers = beside_peers(model, ROUNDS)
    where, rate = operators(20)
    after, one_after = machine.probe(), machine.probe(1)
    peak = max(one["int8"], one_after["int8"])
    machine.write(
        "latency",
        "Latency of one check",
        [
            ("## By size (all cores, no cache)", sizes),
            ("## 8 rules x 128 tokens, beside the peers (same backbone, random heads)", peers),
            ("## Where one thread's time goes (8 rules x 128 tokens)", where),
        ],
        [
            "Cost in rules: " + "; ".join(linear(sizes, tokens) for tokens in (32, 128, 512)) + ".",
            f"int8 products: {rate:.0f} GOP/s on one thread, {rate / peak:.0%} of the probe's {peak:.0f} "
            "(1024 x 1024 x 1024, u8 x s8, one thread).",
            f"Probe, all cores, before and after: fp32 {before['fp32']:.0f} and {after['fp32']:.0f} GFLOP/s, int8 "
            f"{before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
            f"Model {model.id}. {machine.machine(('onnxruntime', 'torch', 'transformers', 'sentence-transformers'))}.",
            "Command: `python benchmarks/latency.py`.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
