"""Train a model: csrm-train RECIPE --backbones DIR [--public DIR] [--out DIR]."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from csrm_guard.errors import CsrmGuardError
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.checkpoint import CheckpointError, Trained, find_backbone, load_checkpoint, start
from csrm_guard_train.data import Authored, read_authored
from csrm_guard_train.engine import leave
from csrm_guard_train.families import FamilyError
from csrm_guard_train.groups import Group
from csrm_guard_train.labellers import StrictnessError
from csrm_guard_train.loop import train
from csrm_guard_train.pairs import pair_groups, read_pairs
from csrm_guard_train.proposer import read_proposals
from csrm_guard_train.public import PUBLIC_FILES, read_public
from csrm_guard_train.recipe import Recipe, RecipeError
from csrm_guard_train.responses import RESPONSE_FILES, read_responses
from csrm_guard_train.strictness_sources import authored_sources, public_sources
from csrm_guard_train.validation import rows_to_jsonl, validation_rows

app = typer.Typer(add_completion=False)
_DATA = Path(__file__).resolve().parents[1] / "data" / "authored"


@app.command()
def run(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A .toml recipe.")],
    backbones: Annotated[Path | None, typer.Option(help="Folder of pretrained encoders; the recipe names one.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of authored sets.")] = _DATA,
    public: Annotated[Path | None, typer.Option(help="Folder of public sets, optional.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="pairs.jsonl that csrm-strictness wrote, optional.")] = None,
    proposals: Annotated[Path | None, typer.Option(help="OUT.jsonl that csrm-propose wrote, optional.")] = None,
    init: Annotated[Path | None, typer.Option(help="A finished checkpoint to start from, not the backbone.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="A finished checkpoint to learn from; the recipe's `distil` says how much.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoint/, log.jsonl.")] = Path("runs/default"),
    stop_after: Annotated[float | None, typer.Option(help="Seconds after which to save and stop.")] = None,
) -> None:
    """Train by a recipe; run the same command again to resume an interrupted run."""
    try:
        recipe = Recipe.from_file(recipe_file)
        authored = read_authored(data)
        training, held_out = authored.split(recipe.validation, recipe.seed)
        groups = read_public(public, authored.ladders, recipe.seed, authored.wordings) if public else []
        responses = read_responses(public, recipe.seed) if public and recipe.mixture.responses else []
        strict = _strict_groups(pairs, training, held_out, public, recipe.seed) if pairs else []
        proposed = read_proposals(proposals) if proposals else []
        guide = _teacher(teacher, recipe)
        trained = _begin(recipe, backbones, init, out)
    except (CsrmGuardError, RecipeError, CheckpointError, FamilyError, StrictnessError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    rows = validation_rows(held_out, recipe.seed)
    trained.card.update(_card(recipe, data, public, len(groups)))
    trained.card["rows"] = {
        "items": len(training.items),
        "rungs": len(training.rungs),
        "transcripts": len(training.transcripts),
        "held_out_rows": len(rows),
    }
    trained.held_out.extend(rows_to_jsonl(rows))
    if pairs:
        trained.card["strict_pairs"] = {"groups": len(strict), "sha256": hashlib.sha256(pairs.read_bytes()).hexdigest()}
    if proposals:
        digest = hashlib.sha256(proposals.read_bytes()).hexdigest()
        trained.card["proposals"] = {"groups": len(proposed), "sha256": digest}
    augmenter = Augmenter(training, recipe.mixture, groups, [*strict, *proposed], responses)
    if guide:
        trained.card["teacher"] = guide.card
    report = train(trained, augmenter, rows, out, stop_after=stop_after, teacher=guide)
    leave()
    typer.echo(f"{report.step} steps, {report.tokens} tokens, {report.seconds:.0f} s -> {out / 'checkpoint'}")


def _strict_groups(pairs: Path, training: Authored, held_out: Authored, public: Path | None, seed: int) -> list[Group]:
    """Return the kept pairs on their conversations, at most two of a conversation's, none of a held-out category."""
    sources = authored_sources(training) + (public_sources(public, seed=seed) if public else [])
    away = {rung.id for rung in held_out.rungs}
    kept = [pair for pair in read_pairs(pairs) if not any(row.conversation in away for row in pair.labels)]
    return pair_groups(kept, [c for source in sources for c in source.conversations], most=2, seed=seed)


def _teacher(folder: Path | None, recipe: Recipe) -> Trained | None:
    """Return the model to learn from.

    Raises:
        CheckpointError: the recipe asks for one and there is none, or the other way round, or it
            was trained on what this run holds out.
    """
    if (folder is None) != (recipe.distil == 0):
        raise CheckpointError("--teacher and the recipe's `distil` belong together: give both or neither")
    if folder is None:
        return None
    found = load_checkpoint(folder)
    if (found.recipe.seed, found.recipe.validation) != (recipe.seed, recipe.validation):
        raise CheckpointError(f"{folder}: seed and validation must be the recipe's, or held-out rows leak")
    return found


def _begin(recipe: Recipe, backbones: Path | None, init: Path | None, out: Path) -> Trained:
    """Return the run's saved state, or a model that starts from `init` or the recipe's backbone."""
    checkpoint = out / "checkpoint"
    if not checkpoint.is_dir() and init is not None:
        earlier = load_checkpoint(init)
        same = ("backbone", "structure", "head", "lora", "limits", "seed", "validation")
        if any(getattr(earlier.recipe, name) != getattr(recipe, name) for name in same):
            raise CheckpointError(f"{init}: {', '.join(same)} must be those of the recipe")
        # The same seed and share hold the same deployments out.
        return replace(earlier, recipe=recipe, card={"started_from": earlier.card}, held_out=[])
    if not checkpoint.is_dir():
        return start(recipe, find_backbone(recipe.backbone, backbones))
    saved = load_checkpoint(checkpoint)
    if saved.recipe != recipe:
        raise CheckpointError(f"{checkpoint}: made with another recipe; give --out another folder")
    if not (checkpoint / "resume.pt").is_file():
        raise CheckpointError(f"{checkpoint}: this run is finished; give --out another folder")
    saved.held_out.clear()
    return saved


def _card(recipe: Recipe, data: Path, public: Path | None, groups: int) -> dict[str, Any]:
    """Return what the model is trained on: files with their hashes, licences, software."""
    read = sorted([*data.glob("*.jsonl*"), *data.glob("*.yaml")])
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in read}
    used = {}
    known = PUBLIC_FILES | (RESPONSE_FILES if recipe.mixture.responses else {})
    for name, (licence, most) in known.items() if public else ():
        for path in sorted(public.glob(f"{name}.jsonl*") if public else [])[:1]:
            sha = hashlib.sha256(path.read_bytes()).hexdigest()
            used[path.name] = {"licence": licence, "most_rows": most, "sha256": sha}
    return {
        "recipe": json.loads(recipe.model_dump_json()),
        "authored": {"licence": "Apache-2.0", "files": files},
        "public": {"groups": groups, "files": used},
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
