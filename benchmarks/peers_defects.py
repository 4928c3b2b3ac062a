"""Who leaks what: python benchmarks/peers_defects.py.

Runs every defect against the guardrails that are installed in this interpreter, ours among them, on a scripted server.
What one interpreter cannot hold together is run in several: each run keeps the findings of the others in
results/peers_defects.json and writes the table of all.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from defects import DEFECTS

RESULTS = Path(__file__).parent / "results"
# The module that asks, and the package without which it cannot.
FAMILIES = {"defects_openai": "openai", "defects_nemo": "nemoguardrails", "defects_langchain": "langchain"}


def main() -> None:
    path = RESULTS / "peers_defects.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for module, package in FAMILIES.items():
        try:
            family = importlib.import_module(module)
            findings = family.run()
        except ModuleNotFoundError as exc:
            print(f"{package}: left out, {exc}", file=sys.stderr)
            continue
        packages = [f"{name} {version(name)}" for name in family.PACKAGES if _installed(name)]
        when = ", ".join([*packages, f"Python {platform.python_version()}", str(date.today())])
        for system, answers in findings.items():
            shown = {name: {"holds": one.holds, "seen": one.seen} for name, one in answers.items()}
            found[system] = {"family": module, "findings": shown, "run": when}
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
    text = report(found)
    (RESULTS / "peers_defects.md").write_text(text, "utf-8")
    print(text)


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def report(found: dict[str, Any]) -> str:
    """Return the findings as a table in markdown."""
    systems = sorted(found, key=lambda name: (list(FAMILIES).index(found[name]["family"]), name))
    lines = ["# Who leaks what", ""]
    lines += [f"| | {' | '.join(systems)} |", "|---" * (len(systems) + 1) + "|"]
    for name, defect in DEFECTS.items():
        cells = [_cell(found[system]["findings"].get(name)) for system in systems]
        lines.append(f"| {defect} | {' | '.join(cells)} |")
    lines += [
        "",
        "Empty: the defect does not concern the system. Every system has one rule: a word that may not occur.",
    ]
    lines += ["Each is used as its own documentation shows, with its defaults.", ""]
    lines += [f"- {system}: {found[system]['run']}." for system in systems]
    lines += ["- Command, in an environment with csrm-guard and the peer: `python benchmarks/peers_defects.py`."]
    return "\n".join(lines) + "\n"


def _cell(finding: dict[str, Any] | None) -> str:
    if finding is None:
        return ""
    return f"{'holds' if finding['holds'] else '**fails**'} ({finding['seen'].replace('|', '/')})"


if __name__ == "__main__":
    main()
