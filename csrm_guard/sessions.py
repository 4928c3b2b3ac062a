"""Make ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csrm_guard.binding import Provider
from csrm_guard.errors import ArtifactError, RuntimeMissing

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["load_session"]

_MISSING = 'ONNX Runtime is not installed: pip install "csrm-guard[cpu]" (or "csrm-guard[gpu]" on a machine with CUDA)'


def load_session(graph: Path, threads: int | None, wanted: Sequence[Provider]) -> InferenceSession:
    """Return a session on the first of the wanted providers that works.

    Args:
        graph: an ONNX file.
        threads: of one run; None: one per core.
        wanted: execution providers, at least one.

    Raises:
        RuntimeMissing: ONNX Runtime, or a provider, is not installed.
        ArtifactError: it cannot load the graph.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise RuntimeMissing(_MISSING) from exc
    available = onnxruntime.get_available_providers()
    names = [p if isinstance(p, str) else p[0] for p in wanted]
    unknown = [name for name in names if name not in available]
    if unknown:
        raise RuntimeMissing(f"no execution provider {', '.join(unknown)} here; there are {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about graph optimization are not the user's concern
    # On CPUs without VNNI, sums of u8 x s8 products overflow and are cut off, unless weights are turned into u8 at
    # loading; where nothing can overflow ONNX Runtime passes this over.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # ONNX Runtime wants a list of names and (name, dict) pairs, exactly.
        found = [p if isinstance(p, str) else (p[0], dict(p[1])) for p in wanted]
        return onnxruntime.InferenceSession(str(graph), options, providers=found)
    except Exception as exc:
        raise ArtifactError(f"{graph}: ONNX Runtime cannot load it ({exc}); export the model again") from exc
