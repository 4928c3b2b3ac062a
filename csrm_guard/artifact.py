"""The model directory that the exporter writes and the runtime loads, described by its manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from csrm_guard.calibration import Calibration
from csrm_guard.encoding import Limits
from csrm_guard.errors import ArtifactError
from csrm_guard.template import TEMPLATE_VERSION

__all__ = ["DEFAULT_ARTIFACT", "MANIFEST", "Manifest", "digest", "read_manifest", "write_manifest"]

MANIFEST = "manifest.json"
DEFAULT_ARTIFACT = Path(__file__).parent / "artifacts" / "default"


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
        precision: of the weights.
        layout: how the graph is fed, see `csrm_guard.graphs`.
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
    precision: Literal["int8", "fp16", "fp32"]
    layout: Literal["packed", "split", "batched"] = "packed"
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
