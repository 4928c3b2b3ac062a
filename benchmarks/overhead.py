"""What the engine itself costs: python benchmarks/overhead.py.

A check with a fake model, imports, install size, a fresh process to its first verdict, peak memory, and whether memory
grows over many checks.
"""

from __future__ import annotations

import argparse
import gc
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
from questions import policy, text

from csrm_guard import Guard, OnnxRewardModel
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.testing import KeywordRewardModel

ROOT = Path(__file__).parents[1]
FIRST = (
    "from csrm_guard import Guard\n"
    "verdict = Guard('support-desk').check('I promise you a refund.', stage='response')\n"
    "assert not verdict.degraded, verdict.error\n"
)
STARTS = {
    "python alone": "",
    "import csrm_guard": "import csrm_guard",
    "from csrm_guard import Guard, Policy": "from csrm_guard import Guard, Policy",
    "first verdict of the shipped model (support-desk)": FIRST,
}


# Not ru_maxrss: Linux hands a parent's down to its children.
PEAK = """
from pathlib import Path
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def fresh(code: str) -> tuple[float, float]:
    """Return seconds and peak MiB of a fresh process."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, int(done.stdout) / 1024


def starts(rounds: int) -> list[dict[str, object]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for code in STARTS.values():
        fresh(code)  # from the disk into memory
    for _ in range(rounds):
        for name, code in STARTS.items():
            found[name].append(fresh(code))
    alone = statistics.median(took for took, _ in found["python alone"])
    return [
        {
            "a fresh process": name,
            "ms (quartiles)": machine.spread([took for took, _ in runs]),
            "beyond python, ms": f"{(statistics.median(took for took, _ in runs) - alone) * 1e3:.0f}",
            "peak MiB": f"{statistics.median(size for _, size in runs):.0f}",
        }
        for name, runs in found.items()
    ]


def engine(rounds: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for rules in (1, 8, 64):
        guard = Guard(policy(rules), KeywordRewardModel("nothing"))
        message = {"role": "user", "content": "My kettle leaks. " * 20}
        times = []
        for _ in range(rounds):
            took = machine.once(lambda g=guard, m=message: [g.check([m]) for _ in range(200)])  # type: ignore[misc]
            times.append(took / 200)
        rows.append({"rules": rules, "one check with the fake model, µs (quartiles)": machine.spread(times, 1e6)})
    return rows


def installed() -> list[dict[str, object]]:
    """Return the MiB of each package that `pip install "csrm-guard[cpu]"` brings."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        constraints = ROOT / "constraints" / "dev.txt"
        command += ["--constraint", str(constraints), "--target", folder, f"{ROOT}[cpu]"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return [{"package": f"pip failed: {done.stderr.strip().splitlines()[-1]}", "MiB": ""}]
        sizes: dict[str, int] = {}
        for path in Path(folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                top = path.relative_to(folder).parts[0]
                name = top.split("-")[0].removesuffix(".libs").removesuffix(".py").lower() if top != "bin" else top
                sizes[name] = sizes.get(name, 0) + path.stat().st_size
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()  # the context manager wants to remove it
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    rows: list[dict[str, object]] = [{"package": "all", "MiB": f"{sum(sizes.values()) / 2**20:.1f}"}]
    rows += [{"package": name, "MiB": f"{size / 2**20:.1f}"} for name, size in ordered[:10]]
    return [*rows, {"package": "the others", "MiB": f"{sum(s for _, s in ordered[10:]) / 2**20:.1f}"}]


def resident() -> float:
    """Return the MiB that this process holds now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def growth(checks: int, real: int) -> list[dict[str, object]]:
    """Return memory at four points of many checks; every text is another one."""
    model = OnnxRewardModel.load(DEFAULT_ARTIFACT)
    base = text(model, 48)
    guards = {
        f"fake model, {checks:,} checks": (Guard(policy(8), KeywordRewardModel("nothing")), checks),
        f"shipped model, {real:,} checks of 1 rule": (Guard(policy(1), model), real),
    }
    rows: list[dict[str, object]] = []
    for name, (guard, count) in guards.items():
        held = []
        for i in range(count + 1):
            if i % max(count // 4, 1) == 0:
                gc.collect()
                held.append(resident())
            context = {"role": "user", "content": f"question {i // 2}: {base}"}  # each prompt twice: it is kept
            guard.check([context, {"role": "assistant", "content": f"answer {i}"}])
        rows.append({
            "memory over": name, "MiB at 0, 1/4, 1/2, 3/4, 1": ", ".join(f"{m:.1f}" for m in held),
            "growth in the last half, MiB": f"{held[-1] - held[len(held) // 2]:+.1f}",
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checks", type=int, default=100_000, help="with the fake model, for growth")
    parser.add_argument("--real-checks", type=int, default=2_000, help="with the shipped model, for growth")
    parser.add_argument("--no-install", action="store_true", help="leave the install size out")
    options = parser.parse_args()
    parts = [
        ("## Engine alone", engine(options.rounds)),
        ("## A fresh process", starts(options.rounds)),
        ("## Memory", growth(options.checks, options.real_checks)),
    ]
    if not options.no_install:
        parts.append(('## Installed: `pip install "csrm-guard[cpu]"`', installed()))
    machine.write(
        "overhead",
        "What the engine costs",
        parts,
        [
            "The shipped model keeps prompts that come again, up to 64 MiB, and its tokenizer the last 512 turns: "
            "memory grows until these are full and no further.",
            f"{machine.machine()}.",
            f"Command: `python benchmarks/overhead.py --rounds {options.rounds} --checks {options.checks} "
            f"--real-checks {options.real_checks}`.",
        ],
    )


if __name__ == "__main__":
    main()
