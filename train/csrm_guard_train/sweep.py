"""Compare recipes: csrm-sweep SWEEP.toml --backbones DIR trains every variant with every seed and tabulates.

A sweep names a recipe and variants that override some of its fields. Finished runs are kept, so an
interrupted sweep goes on where it stood. Every run keeps its scores (scores.json), so that a new
number needs no new training.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csrm_guard.documents import read_document
from csrm_guard.errors import CsrmGuardError
from csrm_guard.rows import Row, parse_row, read_jsonl
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.checkpoint import CheckpointError, Trained, find_backbone, load_checkpoint, start
from csrm_guard_train.data import Authored, read_authored
from csrm_guard_train.families import FamilyError
from csrm_guard_train.groups import Group
from csrm_guard_train.loop import train
from csrm_guard_train.metrics import auroc
from csrm_guard_train.predict import predict
from csrm_guard_train.public import read_public
from csrm_guard_train.recipe import Recipe, RecipeError
from csrm_guard_train.responses import read_responses
from csrm_guard_train.validation import validation_rows

__all__ = ["Outcome", "Sweep", "Variant", "markdown", "outcome"]

_DATA = Path(__file__).resolve().parents[1] / "data"
app = typer.Typer(add_completion=False)


class Variant(BaseModel):
    """One row of the table.

    Attributes:
        name: of the row.
        change: fields of the recipe that differ from the sweep's; `mixture.NAME` for the mixture's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    change: dict[str, Any] = {}


class Sweep(BaseModel):
    """A table of training runs.

    Attributes:
        recipe: what all variants share.
        seeds: each variant runs once with each; a seed also decides what is held out.
        variants: the rows.
        first: a stage before each run: fields that differ in it from the run's own. It is trained once for all
            variants that have it alike, and they start from its weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=1)
    first: dict[str, Any] = {}

    @classmethod
    def from_file(cls, path: Path) -> Sweep:
        """Read a .toml, .yaml or .json sweep.

        Raises:
            RecipeError: unknown key, a value out of range, or a change that no recipe has.
            DocumentError: unreadable.
        """
        try:
            sweep = cls.model_validate(read_document(path))
            for variant in sweep.variants:
                sweep.recipe_of(variant, 0)
                sweep.first_of(variant, 0)
        except ValidationError as exc:
            places = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()]
            raise RecipeError("\n".join(places)) from exc
        return sweep

    def recipe_of(self, variant: Variant, seed: int) -> Recipe:
        """Return the recipe of one run."""
        return self._recipe(variant.change, seed)

    def first_of(self, variant: Variant, seed: int) -> Recipe | None:
        """Return the recipe of the stage before a run, if there is one."""
        return self._recipe({**variant.change, **self.first}, seed) if self.first else None

    def _recipe(self, change: Mapping[str, Any], seed: int) -> Recipe:
        fields = self.recipe.model_dump()
        for name, value in change.items():
            part, _, inner = name.partition(".")
            if inner:
                fields[part] = {**fields[part], inner: value}
            else:
                fields[part] = value
        return Recipe.model_validate({**fields, "seed": seed})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run came to, uncalibrated.

    Attributes:
        auroc: of the development rows; chance is .5.
        transcripts: AUROC of multi-rule conversations, any assistant turn.
        same_rule: share of minimal pairs whose violating message scores above the compliant one
            under one rule; chance is .5.
        lenient: the same text scores higher under the plain than under the lenient rule.
        strict: the same text scores higher under the strict than under the plain rule.
        held_out: AUROC of held-out rows of the training deployments' authors.
        seconds: of training.
        tokens: padded tokens seen.
    """

    auroc: float
    transcripts: float
    same_rule: float
    lenient: float
    strict: float
    held_out: float
    seconds: float
    tokens: int


def outcome(rows: Sequence[Row], scores: Mapping[str, float], run: Mapping[str, Any]) -> Outcome:
    """Return the numbers of a run.

    Args:
        rows: the development rows that were scored.
        scores: row id to its largest violation logit.
        run: `seconds`, `tokens` and `held_out` of the training.
    """

    def area(part: list[Row]) -> float:
        y = np.array([bool(row.label) for row in part], np.float64)
        return auroc(y, np.array([scores[row.id] for row in part], np.float64))

    def above(more: str, less: str) -> float:
        stems = [i.removesuffix(more) for i in scores if i.endswith(f"-{more}")]
        stems = [stem for stem in stems if stem + less in scores]
        won = [(scores[s + more] > scores[s + less]) + (scores[s + more] == scores[s + less]) / 2 for s in stems]
        return mean(won) if won else float("nan")

    long = [row for row in rows if row.scope == "any assistant turn"]
    return Outcome(
        auroc=area([row for row in rows if row.scope != "any assistant turn"]),
        transcripts=area(long) if long else float("nan"),
        same_rule=above("violating", "compliant"),
        lenient=above("violating", "lenient"),
        strict=above("strict", "compliant"),
        held_out=float(run["held_out"]),
        seconds=float(run["seconds"]),
        tokens=int(run["tokens"]),
    )


def markdown(found: Mapping[str, Sequence[Outcome]]) -> str:
    """Return the table: per variant the mean over seeds, and in brackets the lowest and highest."""
    columns = ("auroc", "same_rule", "lenient", "strict", "transcripts", "held_out")
    lines = ["| | seeds | " + " | ".join(columns) + " | tokens | s |", "|" + "---|" * (len(columns) + 4)]
    for name, runs in found.items():
        cells = [_spread([getattr(run, column) for run in runs]) for column in columns]
        size = f"{mean(run.tokens for run in runs) / 1e6:.2f}M"
        lines.append(
            f"| {name} | {len(runs)} | " + " | ".join(cells) + f" | {size} | {mean(r.seconds for r in runs):.0f} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    middle = f"{mean(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f}-{max(values):.3f})"


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="SWEEP", help="A .toml sweep.")],
    backbones: Annotated[Path | None, typer.Option(help="Folder of pretrained models.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of authored sets.")] = _DATA / "authored",
    dev: Annotated[Path, typer.Option(help="Folder of labelled development rows.")] = _DATA / "dev",
    public: Annotated[Path | None, typer.Option(help="Folder of public sets, optional.")] = None,
    out: Annotated[Path, typer.Option(help="Gets a folder per run, table.md and results.json.")] = Path("runs/sweep"),
) -> None:
    """Train and score what is not there yet, then write the table."""
    try:
        sweep = Sweep.from_file(source)
        rows = [parse_row(row, f"{p}:{line}") for p in sorted(dev.glob("*.jsonl*")) for line, row in read_jsonl(p)]
        authored = read_authored(data)
        for seed in sweep.seeds:
            for variant in sweep.variants:
                stages = sweep.first_of(variant, seed), sweep.recipe_of(variant, seed)
                _one(*stages, out / f"{variant.name}-{seed}", Sources(authored, rows, backbones, public))
                write_table(sweep, rows, out)
    except (CsrmGuardError, RecipeError, CheckpointError, FamilyError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    typer.echo((out / "table.md").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Sources:
    """What the runs of a sweep read: authored sets, rows to score, folders of backbones and of public sets."""

    authored: Authored
    rows: Sequence[Row]
    backbones: Path | None
    public: Path | None


def _one(first: Recipe | None, recipe: Recipe, out: Path, sources: Sources) -> None:
    """Train and score one run, unless it is finished; keep its scores and drop its weights."""
    if (out / "scores.json").is_file():
        return
    before = None
    if first:
        # Named by its recipe: variants that have this stage alike share it.
        name = hashlib.sha256(first.model_dump_json().encode()).hexdigest()[:8]
        before = _trained(first, out.parent / f"first-{name}", sources, None)
    trained = _trained(recipe, out, sources, before)
    checkpoint = out / "checkpoint"
    began = time.monotonic()
    scores = _score(trained, sources.rows)
    report = trained.card["training"]
    kept_report = {"seconds": report["seconds"], "tokens": report["tokens"], "held_out": report["held_out"]["auroc"]}
    (out / "scores.json").write_text(
        json.dumps({"recipe": json.loads(recipe.model_dump_json()), "run": kept_report, "scores": scores}) + "\n"
    )
    shutil.rmtree(checkpoint)
    typer.echo(f"{out.name}: scored in {time.monotonic() - began:.0f} s", err=True)


def _trained(recipe: Recipe, out: Path, sources: Sources, before: Trained | None) -> Trained:
    """Return the model of one stage, trained from `before` or the recipe's backbone, or as it was left finished."""
    checkpoint = out / "checkpoint"
    trained = load_checkpoint(checkpoint) if checkpoint.is_dir() else None
    if trained and not (checkpoint / "resume.pt").is_file():
        return trained
    if trained is None and before is not None:
        trained = replace(before, recipe=recipe, card={"started_from": before.card}, held_out=[])
    trained = trained or start(recipe, find_backbone(recipe.backbone, sources.backbones))
    training, held_out = sources.authored.split(recipe.validation, recipe.seed)
    groups: list[Group] = (
        read_public(sources.public, training.ladders, recipe.seed, training.wordings) if sources.public else []
    )
    answers = read_responses(sources.public, recipe.seed) if sources.public and recipe.mixture.responses else []
    kept = validation_rows(held_out, recipe.seed)
    some = random.Random(recipe.seed).sample(kept, k=min(len(kept), 600))
    augmenter = Augmenter(training, recipe.mixture, groups, responses=answers)
    train(trained, augmenter, some, out, evaluate_steps=10**9)
    return load_checkpoint(checkpoint)


def _score(trained: Trained, rows: Sequence[Row]) -> dict[str, float]:
    # As it was trained: in bfloat16 the matrix units of a recent CPU are several times as fast.
    kind = torch.bfloat16 if trained.recipe.precision == "bfloat16" else torch.float32
    found = predict(trained.model.eval().to(kind), trained.encoder, rows)
    return {row.id: float(score.logits.max()) for row, score in zip(rows, found, strict=True)}


def write_table(sweep: Sweep, rows: Sequence[Row], out: Path) -> None:
    """Write table.md and results.json of all finished runs."""
    found: dict[str, list[Outcome]] = {}
    for variant in sweep.variants:
        for seed in sweep.seeds:
            path = out / f"{variant.name}-{seed}" / "scores.json"
            if path.is_file():
                kept = json.loads(path.read_text(encoding="utf-8"))
                found.setdefault(variant.name, []).append(outcome(rows, kept["scores"], kept["run"]))
    (out / "table.md").write_text(markdown(found), encoding="utf-8")
    results = {name: [vars_of(run) for run in runs] for name, runs in found.items()}
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def vars_of(run: Outcome) -> dict[str, float]:
    """Return an outcome as an object for JSON."""
    return {name: getattr(run, name) for name in Outcome.__slots__}


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
