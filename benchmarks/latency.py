"""Latency of one check, of a fresh process, and of the engine alone: python benchmarks/latency.py.

Absolute times drift with the machine, so a matrix product of known size is timed before and
after; the table says how far the machine's own speed moved.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from csrm_guard import Guard, OnnxRewardModel, Policy, Rule
from csrm_guard.testing import KeywordRewardModel

RESULTS = Path(__file__).parent / "results" / "latency.md"
WORDS = "the customer asked about an order that arrived late and wants to know what we can do for them today "
ROUNDS = 30


def probe() -> float:
    """Return the median GFLOP/s of a fp32 1024 x 1024 x 1024 product in ONNX Runtime."""
    shape = [1024, 1024]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "probe", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {n: np.ones(shape, np.float32) for n in ("a", "b")}
    return 2 * 1024**3 / median(lambda: session.run(None, feed), rounds=20) / 1e9


def median(call: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def policy(rules: int) -> Policy:
    texts = [rule.text for rule in Policy.builtin("support-desk").rules if rule.stance != "permit"]
    picked = [texts[i % len(texts)] for i in range(rules)]
    return Policy(name=f"{rules} rules", rules=tuple(Rule(id=f"r{i}", text=t) for i, t in enumerate(picked)))


def message(model: OnnxRewardModel, tokens: int) -> str:
    text = WORDS * (tokens // 8 + 1)
    ids = model._encoder._tokenizer.encode(text, add_special_tokens=False)
    return text[: ids.offsets[tokens - 1][1]]


def process(code: str) -> float:
    """Return the median seconds that a fresh interpreter needs for some code, less its start."""

    def once(source: str) -> float:
        return median(lambda: subprocess.run([sys.executable, "-c", source], check=True), rounds=5)

    return once(code) - once("pass")


def main() -> None:
    model = OnnxRewardModel.default()
    before = probe()
    lines = ["| rules | judged tokens | total ms | tokenise | run | decide |", "|---|---|---|---|---|---|"]
    for rules, tokens in ((1, 128), (8, 128), (16, 128), (8, 512)):
        guard, text = Guard(policy(rules), model), message(model, tokens)
        verdicts = [guard.check(text) for _ in range(ROUNDS)]
        parts = [
            statistics.median(getattr(v.timings, n) for v in verdicts) * 1e3 for n in ("tokenise", "run", "decide")
        ]
        total = median(lambda g=guard, t=text: g.check(t)) * 1e3  # type: ignore[misc]
        lines.append(f"| {rules} | {tokens} | {total:.1f} | " + " | ".join(f"{p:.2f}" for p in parts) + " |")
    fake = Guard(policy(8), KeywordRewardModel("bomb"))
    engine = median(lambda: fake.check("where is my order?"), rounds=2000) * 1e6
    imports = process("import csrm_guard")
    guard_import = process("from csrm_guard import Guard, Policy")
    first = process("from csrm_guard import Guard; Guard('support-desk').check('hello')")
    after = probe()
    lines += [
        "",
        f"Engine alone (fake model, 8 rules): {engine:.0f} µs a check.",
        f"`import csrm_guard`: {imports * 1e3:.0f} ms; with `Guard` and `Policy`: {guard_import * 1e3:.0f} ms.",
        f"Fresh process to its first verdict (policy support-desk): {first:.2f} s.",
        f"Matrix product probe: {before:.0f} GFLOP/s before, {after:.0f} after.",
        "",
        f"{platform.machine()}, {platform.processor() or 'unnamed CPU'}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, ONNX Runtime {onnxruntime.__version__}, model {model.id}. "
        "Command: `python benchmarks/latency.py`.",
    ]
    report = "\n".join(lines) + "\n"
    print(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
