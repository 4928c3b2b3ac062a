"""The training loop: epochs of freshly drawn groups, one optimizer, resumable checkpoints."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from csrm_guard.rows import Row
from csrm_guard_train.augment import Augmenter
from csrm_guard_train.batches import Encoded, TrainBatch, batches, encode, to_batch
from csrm_guard_train.checkpoint import Trained, save_checkpoint
from csrm_guard_train.distil import Teacher, soft
from csrm_guard_train.engine import Engine, make_engine, product_dtype
from csrm_guard_train.loss import classification, listwise, ordering
from csrm_guard_train.monitor import thin, validate
from csrm_guard_train.recipe import Recipe

__all__ = ["Run", "train"]


@dataclass
class Run:
    """Where a run stands; what a resumed run starts from.

    Attributes:
        step: optimizer steps taken.
        tokens: padded tokens seen, which the schedule counts.
        seconds: wall time spent in training, over all sessions.
        dropped: groups that did not fit the model's limits.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    dropped: int = 0


def train(
    trained: Trained,
    augmenter: Augmenter,
    held_out: Sequence[Row],
    out: Path,
    *,
    save_seconds: float = 300.0,
    evaluate_steps: int = 5000,
    evaluate_rows: int = 800,
    stop_after: float | None = None,
    teacher: Trained | None = None,
) -> Run:
    """Train in place and write `out`/checkpoint and `out`/log.jsonl.

    A run whose checkpoint holds a `resume.pt` goes on where it stood, at the last saved step.

    Args:
        trained: the model to train, with its recipe.
        augmenter: draws the groups of each epoch.
        held_out: rows of held-out deployments, for the log.
        out: folder of the run.
        save_seconds: how much work an interruption may lose.
        evaluate_steps: how often held-out rows are scored.
        evaluate_rows: about how many of them, whole families only.
        stop_after: seconds after which to save and stop, to be resumed later.
        teacher: a finished model, whose logits are learnt with the recipe's `distil`.
    """
    recipe = trained.recipe
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    trained.model.drop_hidden(recipe.backbone_dropout)
    if recipe.freeze_words:
        trained.model.freeze_words()
    engine = make_engine(trained.model, recipe)
    guide = Teacher(teacher, engine.device) if teacher else None
    run = _resume(out, engine)
    watched = thin(held_out, evaluate_rows)
    total = _plan(augmenter, trained, recipe)
    # torch's generator resumes from the step, chance in sampling from (seed, epoch)
    began, saved = time.monotonic() - run.seconds, time.monotonic()
    started = time.monotonic()
    target = out / "log.jsonl" if engine.rank == 0 else Path(os.devnull)
    with Progress(disable=engine.rank > 0) as progress, target.open("a", encoding="utf-8") as log:
        bar = progress.add_task("training", total=total, completed=run.tokens)
        for rows in _steps(augmenter, trained, recipe, run):
            if run.tokens >= total:
                break
            rate = _rate(run.tokens / total, recipe.warmup)
            losses, size = _step(engine, rows, recipe, rate, guide)
            run.step, run.tokens = run.step + 1, run.tokens + size
            run.seconds = time.monotonic() - began
            record: dict[str, Any] = {**asdict(run), **losses, "lr": rate * recipe.lr}
            if run.step % evaluate_steps == 0:
                record["held_out"] = validate(trained.model, trained, watched)
            log.write(json.dumps(record) + "\n")
            log.flush()
            progress.update(bar, completed=run.tokens, description=f"loss {losses['loss']:.3f}")
            late = time.monotonic()
            # Clocks differ between processes; all do what any of them finds due.
            due = engine.largest(
                2 if stop_after is not None and late - started > stop_after else late - saved > save_seconds
            )
            if due:
                _save(trained, engine, run, out)
                saved = time.monotonic()
            if due == 2:
                return run
        final = {**asdict(run), "held_out": validate(trained.model, trained, watched), "final": True}
        log.write(json.dumps(final) + "\n")
    products = str(product_dtype(recipe, engine.device)).removeprefix("torch.")
    made = {"processes": engine.world, "products": products, "held_out": final["held_out"]}
    trained.card["training"] = {**asdict(run), **made}
    weights = engine.weights()
    if engine.rank == 0:
        save_checkpoint(trained, out / "checkpoint", weights=weights)
    return run


def _plan(augmenter: Augmenter, trained: Trained, recipe: Recipe) -> int:
    """Return how many padded tokens the run sees: its epochs times the size of one."""
    rows = [row for g in augmenter.epoch(random.Random(recipe.seed)) if (row := encode(g, trained.encoder))]
    return int(recipe.epochs * sum(row.longest * row.count for row in rows))


def _steps(augmenter: Augmenter, trained: Trained, recipe: Recipe, run: Run) -> Iterator[list[Encoded]]:
    """Yield the groups of each step, for ever; epochs and their order depend on the seed alone."""
    epoch, skip = 0, run.step
    while True:
        rng = random.Random(recipe.seed * 1_000 + epoch)
        groups = augmenter.epoch(rng)
        rows = [row for group in groups if (row := encode(group, trained.encoder)) is not None]
        if skip == 0:
            run.dropped += len(groups) - len(rows)
        for part in batches(rows, tokens=recipe.step_tokens, rng=rng):
            if skip:
                skip -= 1
                continue
            yield part
        epoch += 1


def _step(
    engine: Engine, rows: list[Encoded], recipe: Recipe, rate: float, guide: Teacher | None = None
) -> tuple[dict[str, float], int]:
    """Take one step; return its losses and how many padded tokens all processes saw."""
    engine.model.train()
    mine = rows[engine.rank :: engine.world]
    parts = _micro_batches(mine or rows[:1], recipe.batch_tokens)
    # Processes move in step: who has fewer parts repeats one without weight.
    count = engine.largest(len(parts))
    terms: dict[str, float] = dict.fromkeys(("loss", "cls", "list", "pair", "soft", "policy"), 0.0)
    size, known = 0, False
    for at in range(count):
        part = parts[min(at, len(parts) - 1)]
        # A part counts by its share of the step's groups, so that a step is one mean over them.
        share = len(part) / len(rows) if mine and at < len(parts) else 0.0
        batch = to_batch(part).to(engine.device)
        labels = guide.logits(part) if guide else None
        with engine.part(last=at == count - 1):
            found = _losses(engine.model, batch, recipe, labels)
            # What is known well already moves nothing; the way back is two thirds of a step.
            known = count == 1 and not engine.largest(int(float(found["loss"].detach()) >= recipe.skip_below))
            if not known:
                # Gradients are averaged over processes; the sum is wanted.
                (found["loss"] * share * engine.world).backward()  # type: ignore[no-untyped-call]  # torch's
        for name, value in found.items():
            terms[name] += float(value.detach()) * share
        size += batch.ids.numel() if share else 0
    norm = 0.0 if known else engine.update(rate)
    *sums, tokens = engine.total([*terms.values(), float(size)])
    losses = {name: round(value, 5) for name, value in zip(terms, sums, strict=True)}
    return {**losses, "grad_norm": round(norm, 4)}, int(tokens)


def _micro_batches(rows: list[Encoded], tokens: int) -> list[list[Encoded]]:
    """Return a step's groups in parts of at most `tokens` padded tokens, at least one group each."""
    parts: list[list[Encoded]] = [[]]
    for row in rows:
        longest = max(r.longest for r in (*parts[-1], row))
        if parts[-1] and longest * (sum(r.count for r in parts[-1]) + row.count) > tokens:
            parts.append([])
        parts[-1].append(row)
    return parts


def _losses(model: nn.Module, batch: TrainBatch, recipe: Recipe, teacher: Tensor | None = None) -> dict[str, Tensor]:
    logits = batch.pooled(model(batch.ids, batch.blocks, batch.positions, batch.heads).float())
    cls = classification(logits, batch.labels, batch.weights)
    ranks = listwise(logits, batch.labels, batch.owners, batch.examples)
    pairs = logits.new_zeros(())
    if len(batch.more):
        pairs = ordering(logits[batch.more], logits[batch.less], recipe.margin)
    learnt = soft(logits, teacher) if teacher is not None else logits.new_zeros(())
    share = recipe.distil if teacher is not None else 0.0
    policy = logits.new_zeros(())
    if len(batch.verdicts):
        policy = classification(logits[batch.bags].amax(dim=1), batch.verdicts, torch.ones_like(batch.verdicts))
    loss = (1 - share) * cls + share * learnt + recipe.list_weight * ranks
    loss = loss + recipe.pair_weight * pairs + recipe.policy_weight * policy
    return {"loss": loss, "cls": cls, "list": ranks, "pair": pairs, "soft": learnt, "policy": policy}


def _rate(progress: float, warmup: float) -> float:
    """Return the share of the peak rate: a linear rise, then a cosine to 2%."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    past = min((progress - warmup) / max(1 - warmup, 1e-9), 1.0)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * past))


def _resume(out: Path, engine: Engine) -> Run:
    state = out / "checkpoint" / "resume.pt"
    if not state.is_file():
        return Run()
    saved = torch.load(state, weights_only=True)
    engine.resume(saved["optimizer"])
    return Run(**saved["run"])


def _save(trained: Trained, engine: Engine, run: Run, out: Path) -> None:
    state = {"optimizer": engine.optimizer_state(), "run": asdict(run)}
    weights = engine.weights()
    if engine.rank == 0:
        save_checkpoint(trained, out / "checkpoint", resume=state, weights=weights)
