"""Score with ONNX Runtime: tokenise, run, calibrate."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from csrm_guard.artifact import DEFAULT_ARTIFACT, Manifest, read_manifest
from csrm_guard.batched import BatchedGraph
from csrm_guard.binding import Bound, Provider, Runner, captures, device_of
from csrm_guard.encoding import Encoder, Window
from csrm_guard.errors import ArtifactError, ScoringError
from csrm_guard.graphs import Graph, PackedGraph, SplitGraph
from csrm_guard.messages import stages_of
from csrm_guard.model import Reading, ScoringRequest
from csrm_guard.prefixes import PrefixCache
from csrm_guard.sessions import load_session
from csrm_guard.template import render_rule

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["OnnxRewardModel"]

_RULES_CACHED = 4096
# A token takes 3 kB for each layer of width 384.
PREFIX_BYTES = 64 << 20


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
        providers: that the session was made with.
        prefix_bytes: for prompts that are read again, see `csrm_guard.prefixes`; 0: none is kept.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: Encoder,
        session: InferenceSession,
        *,
        providers: Sequence[Provider] = (),
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        self.manifest = manifest
        self._id = manifest.id
        self._encoder = encoder
        self._session = session
        self._prefixes = PrefixCache(prefix_bytes)
        self._graph = _graph(manifest, session, providers, self._prefixes)
        self._rule_ids = lru_cache(maxsize=_RULES_CACHED)(self._encode_rule)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> OnnxRewardModel:
        """Load a model directory that csrm-export wrote.

        Args:
            folder: the directory.
            threads: threads of one run; None: one per core.
            providers: names of execution providers, or (name, options), the first that works is used; None: the CPU.
                On a GPU, inputs and outputs are bound, and `enable_cuda_graph` among the options of CUDA is heeded.
            prefix_bytes: for prompts that are read again; 0: none is kept.

        Raises:
            ArtifactError: the directory is incomplete, altered or of another version.
            RuntimeMissing: ONNX Runtime is not installed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        encoder = _load_encoder(folder, manifest)
        wanted = list(providers or ["CPUExecutionProvider"])
        session = load_session(folder / manifest.graph, threads, wanted)
        return cls(manifest, encoder, session, providers=wanted, prefix_bytes=prefix_bytes)

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
        encoded = time.perf_counter()
        # Conversations under the same rules are read together, where the graph can.
        alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for i, chunks in enumerate(rules):
            alike.setdefault(tuple(chunk.ids for chunk in chunks), []).append(i)
        logits: dict[int, NDArray[np.float64]] = {}
        for ids, places in alike.items():
            values = iter(self._read([w for i in places for w in conversations[i].windows], ids))
            for i in places:
                logits[i] = _folded(values, len(conversations[i].windows), rules[i])
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
            for request, conversation, z in zip(
                requests, conversations, (logits[i] for i in range(len(requests))), strict=True
            )
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

    def _read(self, windows: Sequence[Window], ids: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
        """Return raw logits (W, chunks)."""
        try:
            return self._graph.read_all(windows, ids)
        except Exception as exc:
            # ONNX Runtime raises its own unexported types; a caller gets one named error.
            raise ScoringError(f"model {self.id} failed to run: {exc}") from exc


def _folded(values: Iterator[NDArray[np.float32]], windows: int, chunks: Sequence[_Chunk]) -> NDArray[np.float64]:
    """Return logits (W, R) from the next W rows of values: largest over a rule's chunks, smallest over alternatives."""
    shape = 1 + max(c.rule for c in chunks), 1 + max(c.alternative for c in chunks)
    table = np.full((windows, *shape), -np.inf)
    for row in table:
        for chunk, value in zip(chunks, next(values), strict=True):
            place = chunk.rule, chunk.alternative
            row[place] = max(row[place], float(value))
    # An alternative that a rule does not have stands at -inf; it has at least one.
    found: NDArray[np.float64] = np.where(np.isneginf(table), np.inf, table).min(axis=2)
    return found


def _graph(
    manifest: Manifest, session: InferenceSession, providers: Sequence[Provider], prefixes: PrefixCache
) -> Graph:
    device, capture = device_of(providers), captures(providers)
    runner: Runner = session if device is None else Bound(session, device, capture=capture)
    if manifest.layout == "batched":
        return BatchedGraph(runner, prefixes, rounded=capture)
    if manifest.layout == "split":
        return SplitGraph(runner, prefixes)
    return PackedGraph(runner, manifest.limits.sequence)


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
