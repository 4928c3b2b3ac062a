"""A large file: python benchmarks/bulk.py.

Scores rows, each with its policy, through `score_file` as `csrm-guard score` does: rate, memory held, an interruption
in the middle and going on, and what a million rows would take at this rate (not run).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import machine
from overhead import resident
from questions import TEXTS, policy

from csrm_guard import OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.bulk import score_file
from csrm_guard.testing import KeywordRewardModel

POINTS = 20


class Interrupted(Exception):
    """Stands for a killed run."""


class Meter:
    """Counts rows and takes note of time and memory on the way.

    Args:
        every: rows between two notes.
        stop: rows after which the run is interrupted; None: never.
    """

    def __init__(self, every: int, stop: int | None = None) -> None:
        self._every, self._stop = every, stop
        self.rows = 0
        self.notes: list[tuple[int, float, float]] = []

    def __call__(self, rows: int) -> None:
        self.rows += rows
        if rows and self.rows % self._every == 0:
            self.notes.append((self.rows, time.perf_counter(), resident()))
        if self._stop is not None and self.rows >= self._stop:
            raise Interrupted


def write_rows(path: Path, rows: int, rules: int) -> None:
    chance = random.Random(0)
    policies = [policy(rules).model_copy(update={"name": f"policy {i}"}) for i in range(8)]
    rules_of = [[{"id": r.id, "text": r.text} for r in p.rules] for p in policies]
    with path.open("w", encoding="utf-8") as out:
        for i in range(rows):
            words = f"case {i}: " + " ".join(chance.choices(TEXTS, k=chance.choice((1, 1, 2, 3, 6))))
            k = i % len(policies)
            row = {
                "id": f"row-{i}", "policy": {"name": policies[k].name, "rules": rules_of[k]},
                "messages": [{"role": "user", "content": words}], "stage": "prompt",
            }  # fmt: skip
            out.write(json.dumps(row) + "\n")


def run(source: Path, target: Path, model: OnnxRewardModel | KeywordRewardModel, workers: int, rows: int) -> Meter:
    """Return the notes of a run that was interrupted at half and went on."""
    first = Meter(max(rows // POINTS, 1), stop=rows // 2)
    try:
        score_file(source, target, model, workers=workers, progress=first)
    except Interrupted:
        pass
    second = Meter(max(rows // POINTS, 1))
    report = score_file(source, target, model, workers=workers, progress=second)
    ids = [json.loads(line)["id"] for line in target.open(encoding="utf-8")]
    assert ids == [f"row-{i}" for i in range(rows)], "rows are missing, doubled or out of order"
    assert report.errors == 0, f"{report.errors} rows are errors"
    assert report.resumed + report.scored == rows
    second.notes = first.notes + second.notes
    return second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_000, help="with the shipped model")
    parser.add_argument("--fake-rows", type=int, default=100_000, help="with the fake model: memory and plumbing alone")
    parser.add_argument("--rules", type=int, default=4)
    options = parser.parse_args()
    workers = os.cpu_count() or 1
    models = {
        "shipped model": (OnnxRewardModel.load(DEFAULT_ARTIFACT, threads=1), options.rows),
        "fake model": (KeywordRewardModel("nothing"), options.fake_rows),
    }
    before = machine.probe()
    table: list[dict[str, object]] = []
    for name, (model, rows) in models.items():
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
            write_rows(source, rows, options.rules)
            notes = run(source, target, model, workers, rows).notes
        steps = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(notes) if b[0] > a[0]]
        rate = statistics.median(steps)
        held = [m for _, _, m in notes]
        table.append({
            "model": name, "rows": rows, "rows/s (median of twentieths)": f"{rate:.1f}",
            "MiB at 1/4, 1/2, 3/4, 1": ", ".join(f"{held[len(held) * k // 4 - 1]:.0f}" for k in (1, 2, 3, 4)),
            "a million rows, hours (extrapolated)": f"{1e6 / rate / 3600:.1f}",
        })  # fmt: skip
    after = machine.probe()
    machine.write(
        "bulk",
        "A large file",
        [(f"{options.rules} rules a row, 10-130 tokens, {workers} workers", table)],
        [
            "Each run was interrupted at half, and went on from there: every row is there once, in order.",
            "A million rows were not run; the figure is the measured rate, extrapolated.",
            f"Probe before and after: int8 {before['int8']:.0f} and {after['int8']:.0f} GOP/s.",
            f"Model {OnnxRewardModel.load(DEFAULT_ARTIFACT).id}. {machine.machine()}.",
            f"Command: `python benchmarks/bulk.py --rows {options.rows} --fake-rows {options.fake_rows} "
            f"--rules {options.rules}`.",
        ],
    )


if __name__ == "__main__":
    main()
