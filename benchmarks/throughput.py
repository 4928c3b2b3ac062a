"""Bulk throughput beside the peers: python benchmarks/throughput.py.

Every row is a message of its own length under 8 rules; all ways score the same rows on the same cores, in turns.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import machine
from peers import ways
from questions import request

from csrm_guard import OnnxRewardModel, ScoringRequest
from csrm_guard.artifact import DEFAULT_ARTIFACT

ROWS, RULES, ROUNDS = 24, 8, 5


def main() -> None:
    cores = os.cpu_count() or 1
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1, prefix_bytes=0)
    chance = random.Random(0)
    requests = [request(model, RULES, chance.choice((16, 32, 64, 128, 200)), seed) for seed in range(ROWS)]
    pairs = [(rule.text, asked.messages[0].content) for asked in requests for rule in asked.rules]
    pool = ThreadPoolExecutor(cores)

    def one(asked: ScoringRequest) -> object:
        return model.score([asked])

    calls: dict[str, Callable[[], object]] = {f"csrm-guard, {cores} workers": lambda: list(pool.map(one, requests))}
    calls |= {name: partial(score, pairs) for name, score in ways().items()}
    before = machine.probe()
    times = machine.alternate(calls, ROUNDS)
    after = machine.probe()
    ours = next(iter(times.values()))
    rows = [
        {
            "way": name,
            "rows/s": f"{ROWS / sorted(t)[len(t) // 2]:.1f}",
            "seconds (quartiles)": machine.spread(t, 1.0),
            "times ours": f"{machine.ratio(t, ours):.2f}",
        }
        for name, t in times.items()
    ]
    machine.write(
        "throughput",
        "Bulk throughput",
        [(f"{ROWS} rows of 16-200 tokens, {RULES} rules each, {cores} cores, {ROUNDS} rounds in turns", rows)],
        [
            f"Probe before and after: fp32 {before['fp32']:.0f} and {after['fp32']:.0f} GFLOP/s, int8 "
            f"{before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
            f"Model {model.id}. {machine.machine(('onnxruntime', 'torch', 'transformers'))}.",
            "Command: `python benchmarks/throughput.py`.",
        ],
    )


if __name__ == "__main__":
    main()
