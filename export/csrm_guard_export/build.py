"""Build a model directory from a checkpoint: graph, int8, parity, calibration, manifest."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from csrm_guard.artifact import Manifest, digest, write_manifest
from csrm_guard.calibration import Calibration
from csrm_guard.messages import Stage, stages_of
from csrm_guard.model import ScoringRequest
from csrm_guard.onnx_model import OnnxRewardModel
from csrm_guard.rows import Row, parse_row, views
from csrm_guard.template import TEMPLATE_VERSION
from csrm_guard_export.calibrate import Choice, best_method, fit_calibration, report
from csrm_guard_export.nodes import can_split
from csrm_guard_export.onnx import OPSET, export_onnx
from csrm_guard_export.parity import golden, require_fp16, require_fp32
from csrm_guard_export.reduction import to_fp16, to_int8
from csrm_guard_export.split import write_split
from csrm_guard_train.checkpoint import CheckpointError, Trained, load_checkpoint
from csrm_guard_train.families import special_tokens

__all__ = ["Precision", "build"]

Precision = Literal["int8", "fp16", "fp32"]
Layout = Literal["packed", "split", "batched"]
Floats = NDArray[np.float64]
_RAW = Calibration(method="temperature")


def build(
    checkpoint: Path,
    out: Path,
    *,
    name: str = "csrm-default",
    precision: Precision = "int8",
    method: Choice = "platt",
    by_stage: bool = False,
    keep: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write a model directory and return its manifest; `out` appears only when all of it is good.

    Args:
        checkpoint: a folder that csrm-train wrote.
        out: the model directory; replaced.
        name: what the model is called.
        precision: of the weights.
        method: the calibration curve; `auto` takes the best cross-fitted one.
        by_stage: fit a curve for each stage that has enough held-out rows.
        keep: patterns of layers that int8 leaves in fp32 (`csrm_guard_export.nodes.quantizable`).
        say: told what is being done.

    Raises:
        CheckpointError: the checkpoint is incomplete, or has no held-out rows.
        ParityError: the fp32 graph does not score as the checkpoint does, fp16 not as fp32, or int8 costs too much
            AUROC however many layers stay in fp32.
    """
    trained = load_checkpoint(checkpoint, attention="eager")
    if not trained.held_out:
        raise CheckpointError(f"{checkpoint}: no held-out rows to calibrate on; train it, if only for a moment")
    rows = [parse_row(row, f"{checkpoint}/held_out.jsonl") for row in trained.held_out]
    y = np.array([bool(row.label) for row in rows], np.float64)
    with tempfile.TemporaryDirectory(dir=_parent(out)) as tmp:
        fp32, folder = Path(tmp) / "fp32", Path(tmp) / "out"
        say("tracing the graph")
        exact_graph = _lay_out(trained, fp32, name)
        # The reference is the model as it was trained, not the one rearranged for tracing.
        reference = load_checkpoint(checkpoint).model
        graph = OnnxRewardModel.load(fp32).graph
        difference = require_fp32(reference, graph, golden(rows[:24], trained.encoder))
        say(f"fp32 graph agrees with torch within {difference:.1e}")
        parity: dict[str, Any] = {"fp32_max_abs_logit_difference": difference}
        exact = _logits(fp32, rows)
        logits = exact
        shutil.copytree(fp32, folder)

        def score() -> list[Floats]:
            _write(folder, trained, name, precision, _RAW, {}, {})
            return _logits(folder, rows)

        if precision == "int8":
            logits, parity["int8"] = to_int8(
                trained, rows, exact_graph, folder / "model.onnx", keep=keep, exact=exact, score=score, say=say
            )
        elif precision == "fp16":
            say("writing fp16")
            to_fp16(trained, exact_graph, folder / "model.onnx")
            logits = score()
        say("calibrating on held-out deployments")
        calibration, figures = _calibrate(rows, y, logits, method, by_stage)
        if precision == "fp16":
            parity["fp16_max_abs_q_difference"] = require_fp16(
                *([calibration.q(z) for z in x] for x in (exact, logits))
            )
        card = {**trained.card, "calibration": figures}
        manifest = _write(folder, trained, name, precision, calibration, parity, card)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder, out)
    return manifest


def _calibrate(
    rows: Sequence[Row], y: Floats, logits: Sequence[Floats], method: Choice, by_stage: bool
) -> tuple[Calibration, dict[str, Any]]:
    """Return the fitted curve, and its errors before and after."""
    top = np.array([z.max() for z in logits])
    owners = [_owner(row) for row in rows]
    stages: list[Stage] | None = [_stage(row) for row in rows] if by_stage else None
    chosen = best_method(top, y, owners) if method == "auto" else method
    benign, where = _benign(rows, logits)
    fitted = fit_calibration(top, y, benign, method=chosen, stages=stages, benign_stages=where)
    return fitted, report(top, y, fitted, owners, stages)


def _stage(row: Row) -> Stage:
    return stages_of(row.messages[-1], row.stage)[0]


def _parent(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _lay_out(trained: Trained, folder: Path, name: str) -> Path:
    folder.mkdir()
    if can_split(trained.model):
        write_split(trained.model, folder / "model.onnx")
    else:
        export_onnx(trained.model, folder / "model.onnx", trained.recipe.limits)
    trained.tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder, trained, name, "fp32", _RAW, {}, {})
    return folder / "model.onnx"


def _write(
    folder: Path,
    trained: Trained,
    name: str,
    precision: Precision,
    calibration: Calibration,
    parity: dict[str, Any],
    card: dict[str, Any],
) -> Manifest:
    files = {p.name: digest(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    cls, sep = special_tokens(trained.tokenizer)
    written: Layout = "batched" if precision == "fp16" else "split"
    manifest = Manifest(
        name=name,
        cls=cls,
        sep=sep,
        template=TEMPLATE_VERSION,
        files=files,
        precision=precision,
        layout=written if can_split(trained.model) else "packed",
        opset=OPSET,
        limits=trained.recipe.limits,
        calibration=calibration,
        parity=parity,
        card=card,
    )
    write_manifest(folder, manifest)
    return manifest


def _logits(folder: Path, rows: Sequence[Row]) -> list[Floats]:
    """Return each row's rule logits from a directory whose calibration is the identity."""
    model = OnnxRewardModel.load(folder)
    found = []
    for row in rows:
        assert row.policy is not None, row.id
        requests = [ScoringRequest(view, row.policy.rules) for view in views(row.messages, row.scope)]
        q = np.concatenate([reading.q for reading in model.score(requests)]).max(axis=0)
        found.append(np.log(q) - np.log1p(-q))
    return found


def _owner(row: Row) -> str:
    """Return what a held-out row was made from: its id without the variant."""
    if row.scope != "last message":
        return re.sub(r"-(alt|base)\d$", "", row.id)
    return row.id.removesuffix("-kept").split("-under-")[0].rsplit("-", 1)[0]


def _benign(rows: Sequence[Row], logits: Sequence[Floats]) -> tuple[Floats, list[Stage]]:
    """Return the logits of the rules that safe and unsafe rows keep, and their stages."""
    kept: list[float] = []
    stages: list[Stage] = []
    for row, z in zip(rows, logits, strict=True):
        assert row.policy is not None, row.id
        if row.violated is None and row.label:
            continue  # which of its rules are broken is not known
        for rule, value in zip(row.policy.rules, z, strict=True):
            if rule.id not in (row.violated or ()):
                kept.append(float(value))
                stages.append(_stage(row))
    return np.array(kept, np.float64), stages
