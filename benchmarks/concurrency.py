"""Many callers at once: python benchmarks/concurrency.py [--nemo PYTHON] [--openai-guardrails PYTHON].

1, 16 and 200 callers, as asyncio tasks, threads, and over HTTP on loopback (`pip install uvicorn aiohttp`; its server
is http_serve.py, in its own process on the same cores); each asks again as soon as it is answered. Every text is
another one and neighbours are to be answered differently, so that a verdict that is lost or goes to another caller
counts as wrong; answers of the model are compared with those that it gave one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import aiohttp
import load
import machine
from peer_process import PeerProcess, started
from questions import policy

from csrm_guard import Guard, OnnxRewardModel, Policy, Rule, Scheduler
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.checks import DenylistCheck
from csrm_guard.testing import KeywordRewardModel
from csrm_guard.verdict import Verdict

CALLERS, MODES = (1, 16, 200), ("asyncio", "threads", "HTTP")
TEXTS, DEADLINE = 64, 1.0


@dataclass(slots=True)
class Way:
    """One way to be asked, by mode; modes that it does not have are left out."""

    name: str
    runs: dict[str, Callable[[int, float], load.Result]]


def of_guard(name: str, guard: Guard) -> Way:
    """Return a guard whose verdicts say whether a text holds the word."""

    async def acheck(text: str) -> bool:
        return (await guard.acheck(text)).allowed

    threads = partial(load.threads, lambda text: guard.check(text).allowed)
    return Way(name, {"asyncio": partial(load.tasks, acheck), "threads": threads})


class Known:
    """Texts with the verdicts that a guard alone gave on them."""

    def __init__(self, guard: Guard) -> None:
        self.texts = [load.text(i, 7 * i)[0] + " Please answer soon." * (i % 5) for i in range(TEXTS)]
        self.rewards = [guard.check(text).reward for text in self.texts]
        ordered = sorted(self.rewards)
        gap = statistics.median(b - a for a, b in itertools.pairwise(ordered))
        assert gap > 1e-3, f"texts are judged too much alike (median gap {gap:.1e}) for a swap to show"

    def right(self, place: int, reward: float) -> bool:
        # int8 rounds differently with other threads: by less than texts differ.
        return abs(reward - self.rewards[place]) < 1e-3


def of_model(name: str, guard: Guard, known: Known, *, refusals: list[int] | None = None) -> Way:
    """Return a guard whose verdicts are compared with known ones; a refusal in time is right where it is counted."""
    numbers = itertools.count()

    def told(place: int, verdict: Verdict) -> bool:
        if verdict.degraded and refusals is not None:
            refusals.append(place)
            return True
        return known.right(place, verdict.reward)

    async def acheck(text: str) -> bool:
        place = next(numbers) % TEXTS
        # `load` expects the answer that belongs to its own text.
        return _expected(text) == told(place, await guard.acheck(known.texts[place]))

    def check(text: str) -> bool:
        place = next(numbers) % TEXTS
        return _expected(text) == told(place, guard.check(known.texts[place]))

    return Way(name, {"asyncio": partial(load.tasks, acheck), "threads": partial(load.threads, check)})


class Server:
    """http_serve.py in a process of its own; `way` is one of its ways."""

    def __init__(self, way: str, rules: int) -> None:
        script = Path(__file__).with_name("http_serve.py")
        command = [sys.executable, str(script), way, str(rules)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}/"

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def of_server(name: str, server: Server, known: Known | None = None) -> Way:
    """Return a guard behind HTTP; without `known` its texts hold the word or not."""
    numbers = itertools.count()

    async def load_it(callers: int, seconds: float) -> load.Result:
        door = aiohttp.TCPConnector(limit=callers)
        async with aiohttp.ClientSession(connector=door, raise_for_status=True) as client:

            async def acheck(text: str) -> bool:
                place = next(numbers) % TEXTS
                asked = text if known is None else known.texts[place]
                async with client.post(server.url, data=asked.encode()) as response:
                    answer = await response.json()
                if known is None:
                    return bool(answer["allowed"])
                return _expected(text) == known.right(place, answer["reward"])

            return await load.atasks(acheck, callers, seconds)

    return Way(name, {"HTTP": lambda callers, seconds: asyncio.run(load_it(callers, seconds))})


def _expected(text: str) -> bool:
    return load.BLOCKED not in text


def of_peer(name: str, peer: PeerProcess, *, threads: bool) -> Way:
    def ask(mode: str, callers: int, seconds: float) -> load.Result:
        return peer.ask({"mode": mode, "callers": callers, "seconds": seconds})

    modes = ("asyncio", "threads") if threads else ("asyncio",)
    return Way(f"{name} {peer.version}", {mode: partial(ask, mode) for mode in modes})


def measured(ways: list[Way], rounds: int, seconds: float) -> list[dict[str, object]]:
    found: dict[tuple[str, int, str], list[load.Result]] = {}
    for turn in range(rounds):
        for mode, callers in itertools.product(MODES, CALLERS):
            for way in ways if turn % 2 == 0 else ways[::-1]:
                if run := way.runs.get(mode):
                    found.setdefault((mode, callers, way.name), []).append(run(callers, seconds))
    rows: list[dict[str, object]] = []
    names = list(dict.fromkeys(way.name for way in ways))
    for mode, callers in itertools.product(MODES, CALLERS):
        for name in names:
            results = found.get((mode, callers, name))
            if results is None:
                continue
            middle = {k: statistics.median(r[k] for r in results) for k in ("per_second", "p50", "p95", "p99", "cpu")}
            rows.append({
                "callers": f"{callers} {mode}", "way": name, "checks/s": f"{middle['per_second']:.1f}",
                **{f"{p}, ms": f"{middle[p]:.2f}" for p in ("p50", "p95", "p99")},
                # of this process: a server's is not counted
                "CPU ms a check": "" if mode == "HTTP" else f"{middle['cpu']:.2f}",
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
    servers = [Server(way, options.rules) for way in ("engine", "batched", "single")]
    ways += [
        of_server("csrm-guard, engine: fake model, Scheduler", servers[0]),
        of_server("csrm-guard, model, Scheduler", servers[1], known),
        of_server("csrm-guard, model without batching", servers[2], known),
    ]
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
        for mode in ("200 asyncio", "200 threads", "200 HTTP")
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
        f"HTTP: uvicorn {version('uvicorn')}, callers by aiohttp {aiohttp.__version__}, on the same cores.",
        f"Probe before and after: int8 {before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
        f"Model {wide.id}. {machine.machine()}.",
        f"Command: `python benchmarks/concurrency.py --rounds {options.rounds} --seconds {options.seconds:g} "
        f"--rules {options.rules} --nemo PYTHON --openai-guardrails PYTHON`.",
    ]
    machine.write("concurrency", "Many callers at once", [(f"{options.rounds} rounds in turns", rows)], notes)
    scheduler.close()
    engine.close()
    for server in servers:
        server.close()
    for _, peer in peers:
        if peer is not None:
            peer.close()
    if wrong := sum(int(str(row["wrong"])) for row in rows):
        sys.exit(f"{wrong} verdicts were lost or went to another caller")


if __name__ == "__main__":
    main()
