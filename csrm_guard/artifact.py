"""The model directory that the exporter writes and the runtime loads, described by its manifest."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csrm_guard.encoding import Limits
from csrm_guard.errors import ArtifactError
from csrm_guard.template import TEMPLATE_VERSION

__all__ = ["DEFAULT_ARTIFACT", "MANIFEST", "Calibration", "Manifest", "digest", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
DEFAULT_ARTIFACT = Path(__file__).parent / "artifacts" / "default"


class Calibration(BaseModel):
    """How raw violation logits z become probabilities: q = sigmoid(slope * z + intercept).

    Attributes:
        method: `temperature` (intercept 0) or `platt`.
        slope: above 0, so that the order of scores stays.
        intercept: moves the boundary.
        benign: pairs (false-positive rate, q that this share of harmless rows reaches).
        rows: how many held-out rows it was fitted on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["temperature", "platt"] = "platt"
    slope: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    intercept: float = Field(default=0.0, allow_inf_nan=False)
    benign: tuple[tuple[float, float], ...] = ()
    rows: int = 0

    @model_validator(mode="after")
    def _falling(self) -> Calibration:
        rates = [rate for rate, _ in self.benign]
        if rates != sorted(set(rates)) or any(not 0 < rate < 1 for rate in rates):
            raise ValueError("benign: rates must rise and lie between 0 and 1")
        if any(not 0 <= q <= 1 for _, q in self.benign):  # NaN as well: no q would ever reach it
            raise ValueError("benign: every q must lie between 0 and 1")
        return self

    def threshold_at(self, fpr: float) -> float:
        """Return the q that a share `fpr` of harmless rows reaches, between the stored rates.

        Raises:
            ValueError: outside the stored rates; the message names them.
        """
        if not self.benign or not self.benign[0][0] <= fpr <= self.benign[-1][0]:
            known = f"{self.benign[0][0]} to {self.benign[-1][0]}" if self.benign else "none"
            raise ValueError(f"fpr {fpr} is outside the stored rates ({known})")
        for (low, q_low), (high, q_high) in zip(self.benign, self.benign[1:], strict=False):
            if low <= fpr <= high:
                share = (math.log(fpr) - math.log(low)) / (math.log(high) - math.log(low))
                return q_low + share * (q_high - q_low)
        return self.benign[-1][1]


class Manifest(BaseModel):
    """What a model directory holds.

    Attributes:
        format: version of this description.
        name: what the model is called.
        template: version of the text that it was trained to read.
        files: name to SHA-256 of every other file.
        graph: the ONNX file.
        tokenizer: the tokenizer file.
        cls, sep: the tokens that open a rule and every other piece.
        precision: of the weights, `int8` or `fp32`.
        opset: of the graph.
        limits: how many tokens the model reads at once.
        calibration: from logits to probabilities.
        parity: how far the graph is from the checkpoint, as measured at export.
        card: what the model was trained on, and how well it did on held-out rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    template: str
    files: dict[str, str]
    graph: str = "model.onnx"
    tokenizer: str = "tokenizer.json"
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    precision: Literal["int8", "fp32"]
    opset: int
    limits: Limits
    calibration: Calibration = Calibration()
    parity: dict[str, Any] = {}
    card: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """Name and content: equal ids give equal scores."""
        content = hashlib.sha256(self.model_dump_json(exclude={"card", "parity"}).encode())
        return f"{self.name}@{content.hexdigest()[:12]}"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a finished model directory."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a model directory after checking every file against it.

    Raises:
        ArtifactError: no manifest, a missing or altered file, or another template version;
            the message says what to do.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise ArtifactError(f"{path}: cannot be read ({exc.strerror}); give a folder that csrm-export wrote") from exc
    except ValidationError as exc:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        raise ArtifactError(
            f"{path}: not a manifest that this csrm-guard reads: {places}; export the model again"
        ) from exc
    if manifest.template != TEMPLATE_VERSION:
        raise ArtifactError(
            f"{path}: template version {manifest.template}, this csrm-guard reads {TEMPLATE_VERSION}; "
            "export the model again, or install the csrm-guard that it was made with"
        )
    for name, expected in manifest.files.items():
        _verify(folder / name, expected)
    for name in (manifest.graph, manifest.tokenizer):
        if name not in manifest.files:
            raise ArtifactError(f"{path}: {name} has no hash in `files`; export the model again")
    return manifest


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; copy the whole model directory, or reinstall csrm-guard")
    found = digest(path)
    if found != expected:
        raise ArtifactError(
            f"{path}: SHA-256 {found[:12]}… is not the manifest's {expected[:12]}…; "
            "the file is damaged or altered: copy it again, or reinstall csrm-guard"
        )
