"""Bulk throughput beside the peers: python benchmarks/throughput.py.

Every row is a message of its own length under 8 rules; all ways score the same rows on the same cores, in turns.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import machine
from peers import remote, ways
from questions import request

from csrm_guard import OnnxRewardModel, ScoringRequest
from csrm_guard.artifact import DEFAULT_ARTIFACT

RULES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--optimum", type=Path, help="Python of an environment with optimum-onnx[onnxruntime]")
    parser.add_argument("--llm-guard", type=Path, help="Python of an environment with llm-guard[onnxruntime]")
    options = parser.parse_args()
    count, rounds = options.rows, options.rounds
    cores = os.cpu_count() or 1
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1, prefix_bytes=0)
    chance = random.Random(0)
    requests = [request(model, RULES, chance.choice((16, 32, 64, 128, 200)), seed) for seed in range(count)]
    pairs = [(rule.text, asked.messages[0].content) for asked in requests for rule in asked.rules]
    pool = ThreadPoolExecutor(cores)

    def one(asked: ScoringRequest) -> object:
        return model.score([asked])

    calls: dict[str, Callable[[], object]] = {f"csrm-guard, {cores} workers": lambda: list(pool.map(one, requests))}
    calls |= {name: partial(score, pairs) for name, score in ways().items()}
    others = remote(pairs, options.optimum, options.llm_guard)
    calls |= {name: partial(peer.ask, {}) for name, peer in others}
    before = machine.probe()
    times = machine.alternate(calls, rounds)
    after = machine.probe()
    ours = next(iter(times.values()))
    rows = [
        {
            "way": name,
            "rows/s": f"{count / sorted(t)[len(t) // 2]:.1f}",
            "seconds (quartiles)": machine.spread(t, 1.0),
            "times ours": f"{machine.ratio(t, ours):.2f}",
        }
        for name, t in times.items()
    ]
    machine.write(
        "throughput",
        "Bulk throughput",
        [(f"{count} rows of 16-200 tokens, {RULES} rules each, {cores} cores, {rounds} rounds in turns", rows)],
        [
            f"Probe before and after: fp32 {before['fp32']:.0f} and {after['fp32']:.0f} GFLOP/s, int8 "
            f"{before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
            f"Model {model.id}. {machine.machine(('onnxruntime', 'torch', 'transformers'))}.",
            f"Command: `python benchmarks/throughput.py --rounds {rounds} --rows {count} --optimum PYTHON "
            "--llm-guard PYTHON`.",
        ],
    )
    for _, peer in others:
        peer.close()


if __name__ == "__main__":
    main()
