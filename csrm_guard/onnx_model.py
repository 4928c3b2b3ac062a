"""Score with ONNX Runtime: tokenise, run, calibrate."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from csrm_guard.artifact import DEFAULT_ARTIFACT, Manifest, read_manifest
from csrm_guard.encoding import ConversationIds, Encoder
from csrm_guard.errors import ArtifactError, RuntimeMissing, ScoringError
from csrm_guard.graphs import Graph, PackedGraph, SplitGraph
from csrm_guard.messages import stages_of
from csrm_guard.model import Reading, ScoringRequest
from csrm_guard.prefixes import PrefixCache
from csrm_guard.template import render_rule

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["OnnxRewardModel"]

_RULES_CACHED = 4096
# About 3,500 tokens of the shipped model.
PREFIX_BYTES = 64 << 20
_MISSING = 'ONNX Runtime is not installed: pip install "csrm-guard[cpu]" (or "csrm-guard[gpu]" on a machine with CUDA)'


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A chunk of a rule: part of alternative `alternative` of rule `rule`."""

    rule: int
    alternative: int
    ids: tuple[int, ...]


class OnnxRewardModel:
    """A model directory at work. Safe to share between threads and across forks after use.

    Args:
        manifest: what the directory holds, already checked.
        encoder: its tokenizer at work.
        session: its graph at work.
        prefix_bytes: for prompts that are read again, see `csrm_guard.prefixes`; 0: none is kept.
    """

    def __init__(
        self, manifest: Manifest, encoder: Encoder, session: InferenceSession, *, prefix_bytes: int = PREFIX_BYTES
    ) -> None:
        self.manifest = manifest
        self._id = manifest.id
        self._encoder = encoder
        self._session = session
        self._prefixes = PrefixCache(prefix_bytes)
        split = manifest.layout == "split"
        self._graph: Graph = (
            SplitGraph(session, self._prefixes) if split else PackedGraph(session, manifest.limits.sequence)
        )
        self._rule_ids = lru_cache(maxsize=_RULES_CACHED)(self._encode_rule)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> OnnxRewardModel:
        """Load a model directory that csrm-export wrote.

        Args:
            folder: the directory.
            threads: threads of one run; None: one per core.
            providers: execution providers, the first that works is used; None: the CPU.
            prefix_bytes: for prompts that are read again; 0: none is kept.

        Raises:
            ArtifactError: the directory is incomplete, altered or of another version.
            RuntimeMissing: ONNX Runtime is not installed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        encoder = _load_encoder(folder, manifest)
        session = _load_session(folder / manifest.graph, threads, providers)
        return cls(manifest, encoder, session, prefix_bytes=prefix_bytes)

    @classmethod
    def default(cls) -> OnnxRewardModel:
        """Return the model that ships with the package, loaded once per process.

        Raises:
            ArtifactError: it is not there or was altered.
            RuntimeMissing: ONNX Runtime is not installed.
        """
        with _DEFAULT_LOCK:
            return _shared_default(os.getpid())

    @property
    def id(self) -> str:
        """Name and content hash of the model."""
        return self._id

    @property
    def graph(self) -> Graph:
        """The graph, for parity checks and benchmarks: token ids in, raw logits out."""
        return self._graph

    @property
    def encoder(self) -> Encoder:
        """The tokenizer at work."""
        return self._encoder

    @property
    def prefixes(self) -> PrefixCache:
        """Prompts that were read again."""
        return self._prefixes

    @property
    def providers(self) -> list[str]:
        """The execution providers in use."""
        found: list[str] = self._session.get_providers()
        return found

    def threshold_at(self, fpr: float) -> float:
        """Return the q that a share `fpr` of held-out harmless rows reaches.

        Raises:
            ScoringError: the rate is outside the stored ones.
        """
        try:
            return self.manifest.calibration.threshold_at(fpr)
        except ValueError as exc:
            raise ScoringError(f"model {self.id}: {exc}; give the rule a `threshold` instead") from exc

    def score(self, requests: Sequence[ScoringRequest]) -> list[Reading]:
        """Return one reading per request, in order.

        Raises:
            ScoringError: ONNX Runtime failed.
        """
        began = time.perf_counter()
        conversations = [self._encoder.conversation(request.messages) for request in requests]
        rules = [self._chunks(request) for request in requests]
        contexts = Counter(window.context for c in conversations for window in c.windows)
        encoded = time.perf_counter()
        logits = [
            self._logits(conversation, chunks, contexts)
            for conversation, chunks in zip(conversations, rules, strict=True)
        ]
        done = time.perf_counter()
        share = max(len(requests), 1)
        return [
            Reading(
                q=self.manifest.calibration.q(z, stages_of(request.messages[-1])[0]),
                spans=tuple((w.start, w.end) for w in conversation.windows),
                judged_tokens=conversation.judged_tokens,
                context_tokens=conversation.context_tokens,
                context_read=conversation.context_read,
                tokenise=(encoded - began) / share,
                run=(done - encoded) / share,
            )
            for request, conversation, z in zip(requests, conversations, logits, strict=True)
        ]

    def _encode_rule(self, text: str, permits: tuple[str, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
        return tuple(tuple(chunks) for chunks in self._encoder.rule(text, permits))

    def _chunks(self, request: ScoringRequest) -> list[_Chunk]:
        permits = tuple(rule.text for rule in request.permits)
        return [
            _Chunk(r, a, ids)
            for r, rule in enumerate(request.rules)
            for a, alternative in enumerate(self._rule_ids(render_rule(rule), permits))
            for ids in alternative
        ]

    def _logits(
        self, conversation: ConversationIds, chunks: Sequence[_Chunk], contexts: Counter[tuple[int, ...]]
    ) -> NDArray[np.float64]:
        """Return raw logits (W, R): largest over a rule's chunks, smallest over alternatives."""
        shape = 1 + max(c.rule for c in chunks), 1 + max(c.alternative for c in chunks)
        table = np.full((len(conversation.windows), *shape), -np.inf)
        ids = [chunk.ids for chunk in chunks]
        for row, window in zip(table, conversation.windows, strict=True):
            try:
                values = self._graph.read(window, ids, shared=contexts[window.context] > 1)
            except Exception as exc:
                # ONNX Runtime raises its own unexported types; a caller gets one named error.
                raise ScoringError(f"model {self.id} failed to run: {exc}") from exc
            for chunk, value in zip(chunks, values, strict=True):
                place = chunk.rule, chunk.alternative
                row[place] = max(row[place], float(value))
        # An alternative that a rule does not have stands at -inf; it has at least one.
        found: NDArray[np.float64] = np.where(np.isneginf(table), np.inf, table).min(axis=2)
        return found


_DEFAULT_LOCK = threading.Lock()


@lru_cache(maxsize=1)
def _shared_default(process: int) -> OnnxRewardModel:
    # Keyed by process: a session's threads do not survive a fork, so a child loads its own.
    return OnnxRewardModel.load(DEFAULT_ARTIFACT)


def _load_encoder(folder: Path, manifest: Manifest) -> Encoder:
    from tokenizers import Tokenizer

    path = folder / manifest.tokenizer
    try:
        tokenizer = Tokenizer.from_file(str(path))
        return Encoder(tokenizer, cls=manifest.cls, sep=manifest.sep, limits=manifest.limits)
    except Exception as exc:
        # tokenizers raises bare Exception on a file that it cannot read.
        raise ArtifactError(f"{path}: not a usable tokenizer ({exc}); export the model again") from exc


def _load_session(graph: Path, threads: int | None, providers: Sequence[str] | None) -> InferenceSession:
    try:
        import onnxruntime
    except ImportError as exc:
        raise RuntimeMissing(_MISSING) from exc
    available = onnxruntime.get_available_providers()
    wanted = list(providers or ["CPUExecutionProvider"])
    unknown = [p for p in wanted if p not in available]
    if unknown:
        raise RuntimeMissing(f"no execution provider {', '.join(unknown)} here; there are {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about graph optimization are not the user's concern
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=wanted)
    except Exception as exc:
        raise ArtifactError(f"{graph}: ONNX Runtime cannot load it ({exc}); export the model again") from exc
