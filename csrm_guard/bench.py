"""How fast this machine scores, and with which settings it does best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csrm_guard.messages import Message
from csrm_guard.model import ScoringRequest
from csrm_guard.onnx_model import OnnxRewardModel
from csrm_guard.policy import Policy, Rule

__all__ = ["Bench", "Latency", "Throughput"]

_WORDS = "the customer asked about an order that arrived late and wants to know what we can do for them today ".split()
_SHAPES = ((1, 32), (8, 32), (8, 128), (32, 128), (8, 512))
_BATCH = 24


@dataclass(frozen=True, slots=True)
class Latency:
    """One check at a time: median milliseconds with so many threads a run."""

    rules: int
    tokens: int
    threads: int
    ms: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """Checks of 8 rules and 128 tokens a second, with so many at a time on so many threads each."""

    workers: int
    threads: int
    per_second: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured.

    Attributes:
        model: its id.
        cores: that the system shows.
        probe: GFLOP/s of an fp32 product of two 1024 x 1024 matrices, before and after: how far the machine's own
            speed moved meanwhile.
        latencies: by rules, tokens and threads.
        throughputs: by workers and threads.
    """

    model: str
    cores: int
    probe: tuple[float, float]
    latencies: tuple[Latency, ...]
    throughputs: tuple[Throughput, ...]

    @property
    def threads(self) -> int:
        """Threads a run under which one check of 8 rules and 128 tokens is fastest."""
        return min((c for c in self.latencies if (c.rules, c.tokens) == (8, 128)), key=lambda c: c.ms).threads

    @property
    def best(self) -> Throughput:
        """The setting with the most checks a second."""
        return max(self.throughputs, key=lambda c: c.per_second)

    @classmethod
    def run(cls, folder: Path, *, rounds: int, cores: int) -> Bench:
        """Measure a model directory.

        Raises:
            ArtifactError: the directory is incomplete or altered.
            RuntimeMissing: ONNX Runtime is not installed.
        """
        before = _probe()
        steps = sorted({1, max(cores // 2, 1), cores})
        models = {threads: OnnxRewardModel.load(folder, threads=threads, prefix_bytes=0) for threads in steps}
        latencies = tuple(
            Latency(rules, tokens, threads, _check_ms(model, _request(rules, tokens), rounds))
            for rules, tokens in _SHAPES
            for threads, model in models.items()
        )
        settings = sorted({(1, cores), (cores, 1), (max(cores // 2, 1), min(2, cores))})
        rates = tuple(Throughput(w, t, _rate(models.get(t) or models[1], w)) for w, t in settings if t in models)
        return cls(models[1].id, cores, (before, _probe()), latencies, rates)


def _request(rules: int, tokens: int) -> ScoringRequest:
    texts = [rule.text for rule in Policy.builtin("support-desk").rules if rule.stance != "permit"]
    picked = tuple(Rule(id=f"r{i}", text=texts[i % len(texts)]) for i in range(rules))
    return ScoringRequest((Message("user", " ".join(_WORDS[i % len(_WORDS)] for i in range(tokens))),), picked)


def _check_ms(model: OnnxRewardModel, request: ScoringRequest, rounds: int) -> float:
    return 1e3 * _median(lambda: model.score([request]), rounds)


def _rate(model: OnnxRewardModel, workers: int) -> float:
    request = _request(8, 128)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: model.score([request]), range(workers)))
        began = time.perf_counter()
        list(pool.map(lambda _: model.score([request]), range(_BATCH)))
        return _BATCH / (time.perf_counter() - began)


def _probe() -> float:
    a = np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / _median(lambda: a @ a, 10) / 1e9


def _median(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
