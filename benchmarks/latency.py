"""Latency of one check: python benchmarks/latency.py.

By rules and tokens, with its breakdown; beside one plain int8 forward of the same backbone over the tokens that must be
run, and beside the peers' ways at 8 rules x 128 tokens; the share of the int8 peak that
the linear layers reach.
"""

from __future__ import annotations

import argparse
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
from shape import Shape

from csrm_guard import Guard, OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT


def by_size(model: OnnxRewardModel, rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for tokens in (32, 128, 512, 4096):
        for rules in (1, 4, 8, 16, 32, 64):
            if tokens == 4096 and rules > 16:
                continue  # minutes a cell: each of 21 windows reads every rule
            guard = Guard(policy(rules), model)
            asked = request(model, rules, tokens)
            cold = machine.once(lambda g=guard, t=asked.messages: g.check(list(t)))  # type: ignore[misc]
            times = min(rounds, {4096: 3, 512: 7}.get(tokens, rounds))
            verdicts = [guard.check(list(asked.messages)) for _ in range(times)]
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
    times = machine.alternate(calls, rounds, warm=True)
    ours = times["csrm-guard, one check"]
    return [
        {"way": name, "ms (quartiles)": machine.spread(t), "times ours": f"{machine.ratio(t, ours):.2f}"}
        for name, t in times.items()
    ]


def operators(rounds: int) -> tuple[dict[str, float], float]:
    """Return milliseconds by operator on one thread, and GOP/s of the int8 products."""
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
    by_node: dict[tuple[str, str], list[float]] = {}
    for event in events:
        by_node.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e3)
    spent: dict[str, float] = {}
    for (kind, _), times in by_node.items():  # the shortest, as of the probe: other work hardly moves it
        spent[kind] = spent.get(kind, 0.0) + min(times)
    products = spent.get("MatMulIntegerToFloat")  # none: not an int8 graph
    work = Shape.of(DEFAULT_ARTIFACT).products(plain, asked)
    ordered = dict(sorted(spent.items(), key=lambda item: -item[1]))
    return ordered, 2 * work / (products / 1e3) / 1e9 if products else float("nan")


def draw(spent: dict[str, float], title: str, path: Path) -> None:
    """Write the operators' times as a picture."""
    import matplotlib.pyplot as plt

    names, times = list(spent)[:14][::-1], list(spent.values())[:14][::-1]
    total = sum(spent.values())
    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.barh(names, times, color="#4c72b0")
    for place, ms in enumerate(times):
        axes.text(ms, place, f" {ms:.2f} ms, {ms / total:.0%}", va="center", fontsize=8)
    axes.set_xlim(0, max(times) * 1.25)
    axes.set_xlabel("ms on one thread, 8 rules x 128 tokens")
    axes.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--operators-only", action="store_true", help="draw the operator profile and nothing else")
    options = parser.parse_args()
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT, prefix_bytes=0)
    before = machine.probe()
    spent, rate = operators(20)
    total = sum(spent.values())
    where: list[dict[str, object]] = [
        {"operator": name, "ms": f"{ms:.2f}", "share": f"{ms / total:.0%}"} for name, ms in list(spent.items())[:12]
    ]
    peak = machine.probe(1, peak=True)["int8"]
    share = f"int8 products: {rate:.0f} GOP/s on one thread, {rate / peak:.0%} of the probe's {peak:.0f}"
    draw(spent, f"{share}\n{model.id}", machine.RESULTS / "operators.png")
    if options.operators_only:
        print(machine.table(where), share, sep="\n\n")
        return
    sizes = by_size(model, options.rounds)
    peers = beside_peers(model, options.rounds)
    after = machine.probe()
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
            f"{share} (1024 x 1024 x 1024, u8 x s8, one thread); each the shortest of many runs.",
            f"Probe, all cores, before and after: fp32 {before['fp32']:.0f} and {after['fp32']:.0f} GFLOP/s, int8 "
            f"{before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
            f"Model {model.id}. {machine.machine(('onnxruntime', 'torch', 'transformers', 'sentence-transformers'))}.",
            f"Command: `python benchmarks/latency.py --rounds {options.rounds}`.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
