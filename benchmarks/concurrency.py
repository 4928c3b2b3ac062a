"""Many callers at once: python benchmarks/concurrency.py [--nemo PYTHON] [--openai-guardrails PYTHON].

1, 16 and 200 callers, as asyncio tasks and as threads; each asks again as soon as it is answered. Every text is
another one and neighbours are to be answered differently, so that a verdict that is lost or goes to another caller
counts as wrong; answers of the model are compared with those that it gave one after the other.
HTTP is not measured: it belongs to a server, which this package does not have.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import load
import machine
from peer_process import PeerProcess, started
from questions import policy

from csrm_guard import Guard, OnnxRewardModel, Policy, Rule, Scheduler
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.checks import DenylistCheck
from csrm_guard.testing import KeywordRewardModel
from csrm_guard.verdict import Verdict

CALLERS = (1, 16, 200)
TEXTS, DEADLINE = 64, 1.0


@dataclass(slots=True)
class Way:
    """One way to be asked: in tasks, in threads."""

    name: str
    tasks: Callable[[int, float], load.Result]
    threads: Callable[[int, float], load.Result] | None


def of_guard(name: str, guard: Guard) -> Way:
    """Return a guard whose verdicts say whether a text holds the word."""

    async def acheck(text: str) -> bool:
        return (await guard.acheck(text)).allowed

    return Way(name, partial(load.tasks, acheck), partial(load.threads, lambda text: guard.check(text).allowed))


class Known:
    """Texts with the verdicts that a guard alone gave on them."""

    def __init__(self, guard: Guard) -> None:
        self.texts = [load.text(i, 7 * i)[0] + " Please answer soon." * (i % 5) for i in range(TEXTS)]
        self.rewards = [guard.check(text).reward for text in self.texts]
        ordered = sorted(self.rewards)
        gap = statistics.median(b - a for a, b in itertools.pairwise(ordered))
        assert gap > 1e-3, f"texts are judged too much alike (median gap {gap:.1e}) for a swap to show"

    def right(self, place: int, verdict: Verdict) -> bool:
        # int8 rounds differently with other threads: by less than texts differ.
        return abs(verdict.reward - self.rewards[place]) < 1e-3


def of_model(name: str, guard: Guard, known: Known, *, refusals: list[int] | None = None) -> Way:
    """Return a guard whose verdicts are compared with known ones; a refusal in time is right where it is counted."""
    numbers = itertools.count()

    def told(place: int, verdict: Verdict) -> bool:
        if verdict.degraded and refusals is not None:
            refusals.append(place)
            return True
        return known.right(place, verdict)

    async def acheck(text: str) -> bool:
        place = next(numbers) % TEXTS
        # `load` expects the answer that belongs to its own text.
        return _expected(text) == told(place, await guard.acheck(known.texts[place]))

    def check(text: str) -> bool:
        place = next(numbers) % TEXTS
        return _expected(text) == told(place, guard.check(known.texts[place]))

    return Way(name, partial(load.tasks, acheck), partial(load.threads, check))


def _expected(text: str) -> bool:
    return load.BLOCKED not in text


def of_peer(name: str, peer: PeerProcess, *, threads: bool) -> Way:
    def ask(mode: str, callers: int, seconds: float) -> load.Result:
        return peer.ask({"mode": mode, "callers": callers, "seconds": seconds})

    return Way(f"{name} {peer.version}", partial(ask, "asyncio"), partial(ask, "threads") if threads else None)


def measured(ways: list[Way], rounds: int, seconds: float) -> list[dict[str, object]]:
    found: dict[tuple[str, int, str], list[load.Result]] = {}
    for turn in range(rounds):
        for mode, callers in itertools.product(("asyncio", "threads"), CALLERS):
            for way in ways if turn % 2 == 0 else ways[::-1]:
                run = way.tasks if mode == "asyncio" else way.threads
                if run is not None:
                    found.setdefault((mode, callers, way.name), []).append(run(callers, seconds))
    rows: list[dict[str, object]] = []
    for mode, callers in itertools.product(("asyncio", "threads"), CALLERS):
        for way in ways:
            results = found.get((mode, callers, way.name))
            if results is None:
                continue
            middle = {k: statistics.median(r[k] for r in results) for k in ("per_second", "p50", "p95", "p99", "cpu")}
            rows.append({
                "callers": f"{callers} {mode}", "way": way.name, "checks/s": f"{middle['per_second']:.1f}",
                **{f"{p}, ms": f"{middle[p]:.2f}" for p in ("p50", "p95", "p99")},
                "CPU ms a check": f"{middle['cpu']:.2f}",
                "checks": sum(int(r["checks"]) for r in results), "wrong": sum(int(r["wrong"]) for r in results),
            })  # fmt: skip
    return rows


def rate(rows: list[dict[str, object]], callers: str, way: str) -> float:
    return next(float(str(r["checks/s"])) for r in rows if r["callers"] == callers and str(r["way"]).startswith(way))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each cell in each round")
    parser.add_argument("--rules", type=int, default=1, help="of the rows with the model")
    parser.add_argument("--nemo", type=Path, help="Python of an environment with nemoguardrails")
    parser.add_argument("--openai-guardrails", type=Path, help="Python of an environment with openai-guardrails")
    options = parser.parse_args()

    wide, narrow = OnnxRewardModel.load(DEFAULT_ARTIFACT), OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1)
    rules = policy(options.rules)
    known = Known(Guard(rules, narrow))
    scheduler, engine = Scheduler(wide, narrow), Scheduler(KeywordRewardModel(load.BLOCKED))
    one = Policy(rules=(Rule(id="word", text="Do not speak of it."),))
    late: list[int] = []
    ways = [
        of_guard("csrm-guard, a keyword check", Guard(one, checks={"word": DenylistCheck([load.BLOCKED])})),
        of_guard("csrm-guard, engine: fake model, Scheduler", Guard(one, engine)),
        of_model("csrm-guard, model, Scheduler", Guard(rules, scheduler), known),
        of_model(
            f"csrm-guard, model, Scheduler, deadline {DEADLINE:g} s",
            Guard(rules, scheduler, deadline=DEADLINE), known, refusals=late,
        ),
        of_model("csrm-guard, model without batching", Guard(rules, wide), known),
    ]  # fmt: skip
    peers = [
        ("NeMo Guardrails check_async, one rail,", started("NeMo Guardrails", options.nemo, "nemo")),
        (
            "openai-guardrails engine, keyword check,",
            started("openai-guardrails", options.openai_guardrails, "openai-guardrails"),
        ),
    ]
    # NeMo's expressions break in threads of one process ("AST constructor recursion depth mismatch").
    ways += [of_peer(name, peer, threads="NeMo" not in name) for name, peer in peers if peer is not None]
    before = machine.probe()
    rows = measured(ways, options.rounds, options.seconds)
    after = machine.probe()
    gain = [
        f"{mode}: {rate(rows, mode, 'csrm-guard, model, Sched') / rate(rows, mode, 'csrm-guard, model without'):.2f}x"
        for mode in ("200 asyncio", "200 threads")
    ]
    notes = [f"Through the Scheduler against without batching, 200 callers: {', '.join(gain)}."]
    if any("NeMo" in way.name for way in ways):
        engine_rates, model_rates = (
            [f"{rate(rows, f'{n} asyncio', way) / rate(rows, f'{n} asyncio', 'NeMo'):.1f}x" for n in CALLERS]
            for way in ("csrm-guard, engine", "csrm-guard, model, Scheduler")
        )
        notes.append(
            f"Against NeMo's trivial rail, 1, 16 and 200 tasks: our engine {', '.join(engine_rates)}; "
            f"with the model {', '.join(model_rates)}."
        )
    notes += [
        f"Refused for the deadline of {DEADLINE:g} s: {len(late)} checks; they count as answers.",
        f"Model rows: {options.rules} rule(s), texts of 20-60 tokens; the other rows run no model.",
        "NeMo is asked by tasks only: in 200 threads its evaluator of expressions raises.",
        "Callers over HTTP are not measured: the package has no server.",
        f"Probe before and after: int8 {before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
        f"Model {wide.id}. {machine.machine()}.",
        f"Command: `python benchmarks/concurrency.py --rounds {options.rounds} --seconds {options.seconds:g} "
        f"--rules {options.rules} --nemo PYTHON --openai-guardrails PYTHON`.",
    ]
    machine.write("concurrency", "Many callers at once", [(f"{options.rounds} rounds in turns", rows)], notes)
    scheduler.close()
    engine.close()
    for _, peer in peers:
        if peer is not None:
            peer.close()
    if wrong := sum(int(str(row["wrong"])) for row in rows):
        sys.exit(f"{wrong} verdicts were lost or went to another caller")


if __name__ == "__main__":
    main()
