"""Average the weights of checkpoints that share a beginning: csrm-average OUT CHECKPOINT CHECKPOINT...

A model that was trained on from another one and that other one can be averaged weight by weight; the mean often keeps
what either does well (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" and "Model soups").
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from csrm_guard_train.checkpoint import CheckpointError, Trained, load_checkpoint, save_checkpoint

__all__ = ["average"]

app = typer.Typer(add_completion=False)


def average(folders: list[Path]) -> Trained:
    """Return the first checkpoint with the mean weights of all.

    Recipe, tokenizer and held-out rows are the first one's. The card lists what was averaged.

    Args:
        folders: two or more finished checkpoints of one shape; each counts alike.

    Raises:
        CheckpointError: fewer than two, a file is missing, shapes, tokenizers or structures differ, or not all held out
            the same rows.
    """
    if len(folders) < 2:
        raise CheckpointError("an average needs two checkpoints or more")
    found = [load_checkpoint(folder) for folder in folders]
    first = found[0]
    for folder, other in zip(folders[1:], found[1:], strict=True):
        _must_fit(folders[0], first, folder, other)
    states = [one.model.state_dict() for one in found]
    with torch.no_grad():
        for name, weight in states[0].items():
            if weight.is_floating_point():
                weight.copy_(torch.stack([state[name].double() for state in states]).mean(dim=0))
    # What the first began with stands in its own card, below.
    own = {name: value for name, value in first.card.items() if name not in ("started_from", "averaged")}
    card: dict[str, Any] = {**own, "averaged": [one.card for one in found]}
    return Trained(first.model, first.encoder, first.tokenizer, first.recipe, card, first.held_out)


def _must_fit(folder: Path, first: Trained, other_folder: Path, other: Trained) -> None:
    ours, theirs = first.model.state_dict(), other.model.state_dict()
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        raise CheckpointError(f"{other_folder}: other weights than {folder}; average checkpoints of one backbone")
    if first.tokenizer.to_str() != other.tokenizer.to_str():
        raise CheckpointError(f"{other_folder}: another tokenizer than {folder}")
    if first.recipe.structure != other.recipe.structure:
        raise CheckpointError(f"{other_folder}: structure {other.recipe.structure}, {folder}: {first.recipe.structure}")
    split = (first.recipe.validation, first.recipe.seed)
    if (other.recipe.validation, other.recipe.seed) != split:
        raise CheckpointError(
            f"{other_folder}: another `validation` share or `seed` than {folder}: rows held out from one may have "
            "trained the other; train both with the same values"
        )


@app.command()
def run(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new checkpoint directory; must not exist.")],
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT...", help="Two or more.")],
) -> None:
    """Write a checkpoint with the mean weights."""
    try:
        if out.exists():
            raise CheckpointError(f"{out}: exists already; name a new folder")
        save_checkpoint(average(checkpoints), out)
    except CheckpointError as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    typer.echo(str(out))


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
