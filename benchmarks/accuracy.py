"""Every published accuracy table in one run: python benchmarks/accuracy.py [--model DIR] [--sets DIR] [--out DIR].

The development rows come with the repository. `--sets` names a folder of normalised public sets for evaluation,
which are not kept here: `beavertails_30k_test`, `hh_harmless_test_pairs_eval`, `aegis_safety_test`,
`simple_safety_tests`, `wildguard_aegis_train_prompts` (.jsonl or .jsonl.gz; `csrm-sources` writes them). What is absent
is left out and said.
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from csrm_guard import OnnxRewardModel, Policy
from csrm_guard.messages import parse_messages
from csrm_guard.rows import Row, parse_row, read_jsonl
from csrm_guard_export.calibrate import fit_calibration
from csrm_guard_train.data import read_authored
from csrm_guard_train.evaluate import failures, markdown, probe, write
from csrm_guard_train.evaluation import evaluate, score_rows
from csrm_guard_train.metrics import ece, smooth_ece
from csrm_guard_train.probes import pairs

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "train" / "data"
BEAVERTAILS = ROOT / "benchmarks" / "policies" / "beavertails.yaml"
# set -> the policy that it is judged under.
SETS = {
    "beavertails_30k_test": str(BEAVERTAILS),
    "aegis_safety_test": "baseline-harms",
    "simple_safety_tests": "baseline-harms",
    # Never trained on; looked at in development.
    "wildguard_aegis_train_prompts": "baseline-harms",
}
# Of these sets as many rows, drawn by a fixed seed.
SAMPLES = {"wildguard_aegis_train_prompts": 300}
PAIRS = "hh_harmless_test_pairs_eval"


def find(folder: Path | None, name: str) -> Path | None:
    """Return the file of a set, if the folder has it."""
    return next(iter(sorted(folder.rglob(f"{name}.jsonl*"))), None) if folder else None


def normalised(path: Path, policy: Policy) -> Iterator[Row]:
    """Yield labelled rows of a normalised set under a policy."""
    for _, row in read_jsonl(path):
        label = row["labels"]["harmful"]
        if label is not None:
            messages = parse_messages(row["messages"])
            yield Row(row["id"], policy, messages, None, bool(label), None, "last message")


def crossed(rows: Sequence[Row], p: NDArray[np.float64]) -> dict[str, float]:
    """Return the calibration error after a Platt curve fitted on the other prompts of the same set, in five folds."""
    y = np.array([float(bool(row.label)) for row in rows])
    z = np.log(np.clip(p, 1e-9, 1 - 1e-9)) - np.log1p(-np.clip(p, 1e-9, 1 - 1e-9))
    groups = [row.messages[0].content for row in rows]
    fitted = np.empty(len(z))
    for seen, unseen in GroupKFold(5).split(z, groups=groups):
        fitted[unseen] = fit_calibration(z[seen], y[seen], z[seen]).q(z[unseen])
    return {"ece": ece(y, fitted), "smece": smooth_ece(y, fitted)}


def answers(path: Path, policy: Policy, model: OnnxRewardModel) -> dict[str, Any]:
    """Return the report on chosen and rejected answers."""
    better, worse = [], []
    for _, row in read_jsonl(path):
        for key, target in (("chosen", better), ("rejected", worse)):
            said = parse_messages([*row["messages"], {"role": "assistant", "content": row[key]}])
            target.append(Row(f"{row['id']}-{key}", policy, said, "response", None, None, "last message"))
    found = pairs(better, worse, lambda rows: np.array([s.p_unsafe for s in score_rows(rows, model)]))
    return asdict(found)


def main(
    model: Annotated[Path | None, typer.Option(help="A model directory; default: the shipped one.")] = None,
    sets: Annotated[Path | None, typer.Option(help="Folder of normalised public sets for evaluation.")] = None,
    out: Annotated[Path, typer.Option(help="Gets a folder per set and accuracy.md.")] = ROOT / "runs" / "accuracy",
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 500,
) -> None:
    """Score everything that is there; write tables, pages and numbers."""
    loaded = OnnxRewardModel.load(model) if model else OnnxRewardModel.default()
    calibration = loaded.manifest.calibration
    lines = [f"# Accuracy of {loaded.id}", ""]

    def report(name: str, rows: list[Row]) -> dict[str, Any]:
        found = evaluate(rows, loaded, rounds=rounds, calibration=calibration)
        authored = read_authored(DATA / "authored") if name == "authored_dev" else None
        found["probes"] = probe(rows, found["scores"], loaded, authored)
        found.update(failures(rows, found["scores"]))
        (out / name).mkdir(parents=True, exist_ok=True)
        write(out / name, name, found)
        lines.extend([f"## {name}", "", markdown(found), ""])
        typer.echo(f"{name}: AUROC {found['real']['auroc']:.3f}", err=True)
        return found

    for name in ("authored_dev", "transcripts_dev"):
        path = DATA / "dev" / f"{name}.jsonl.gz"
        report(name, [parse_row(row, f"{path}:{line}") for line, row in read_jsonl(path)])
    for name, source in SETS.items():
        path_or_none = find(sets, name)
        if path_or_none is None:
            lines += [f"## {name}", "", "Not there: left out.", ""]
            continue
        policy = Policy.from_file(Path(source)) if source.endswith(".yaml") else Policy.builtin(source)
        rows = list(normalised(path_or_none, policy))
        if name in SAMPLES:
            rows = random.Random(0).sample(rows, k=min(SAMPLES[name], len(rows)))
        found = report(name, rows)
        if len({row.label for row in rows}) == 2:
            p = np.array([row["p_unsafe"] for row in found["scores"]])
            after = crossed(rows, p)
            lines += [f"Calibrated on the set itself (Platt, five folds by prompt): ECE {after['ece']:.3f}, "
                      f"smECE {after['smece']:.3f}.", ""]  # fmt: skip
    path_or_none = find(sets, PAIRS)
    if path_or_none is not None:
        found = answers(path_or_none, Policy.builtin("baseline-harms"), loaded)
        lines += [f"## {PAIRS}", "", f"Chosen above rejected under baseline-harms: {json.dumps(found)}", ""]
    lines += [f"{platform.machine()}, Python {platform.python_version()}. Command: `python benchmarks/accuracy.py`."]
    out.mkdir(parents=True, exist_ok=True)
    (out / "accuracy.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    typer.echo(str(out / "accuracy.md"))


if __name__ == "__main__":
    typer.run(main)
