"""An audit log: one line of JSON for every verdict, appended, `Guard("bank", observers=[AuditLog("audit.jsonl")])`."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from csrm_guard.messages import Message
from csrm_guard.policy import Policy
from csrm_guard.redaction import cut
from csrm_guard.verdict import RuleResult, Verdict

__all__ = ["AuditLog"]


class AuditLog:
    """Append verdicts to a file. Threads and processes may share it: each line is one write at its end.

    Of the judged message a line holds the length and a hash, by which a known text can be found again. A short text can
    be guessed from its hash: give a key where that matters. Texts are written only where `content` is `plain`, without
    what a rule with the action `redact` has found. What failed is named by its class, as its words may quote the text.

    The file is opened once: rotate it by copying, or open a new log. Over a network file system lines may mix.

    Args:
        path: of the file; it is made if it is not there, readable by its owner.
        content: `hash`, or `plain`.
        key: hashes with it (HMAC) instead of plain SHA-256.
        fsync: wait for the disk at each line.

    Raises:
        OSError: the file cannot be opened; when called, cannot be written. A guard logs that and goes on.
        ValueError: an unknown `content`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        content: Literal["hash", "plain"] = "hash",
        key: bytes | None = None,
        fsync: bool = False,
    ) -> None:
        if content not in ("hash", "plain"):
            raise ValueError(f"content is hash or plain, not {content!r}")
        self.path = Path(path)
        self._content, self._key, self._fsync = content, key, fsync
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, messages: tuple[Message, ...], verdict: Verdict, policy: Policy, /) -> None:
        """Append a line."""
        # ASCII: there are more ends of lines in Unicode, and half a surrogate pair, which Python allows, is no UTF-8.
        data = (json.dumps(self._row(messages, verdict, policy), separators=(",", ":")) + "\n").encode("ascii")
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self.path}: only a part of a line could be written")
        if self._fsync:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file; a log that is closed cannot be written to."""
        os.close(self._file)

    def __enter__(self) -> AuditLog:
        """Return the log."""
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""
        self.close()

    def _row(self, messages: Sequence[Message], verdict: Verdict, policy: Policy) -> dict[str, Any]:
        judged = messages[-1]
        return {
            "time": datetime.now(timezone.utc).isoformat(),
            "policy": policy.name,
            "policy_hash": verdict.policy_hash,
            "model": verdict.model,
            "stages": verdict.stages,
            "allowed": verdict.allowed,
            "action": verdict.action,
            "would": verdict.would,
            "p_safe": verdict.p_safe,
            "reward": verdict.reward,
            "degraded": verdict.degraded,
            "error": verdict.error_type,
            "rules": [_rule(result) for result in verdict.rules],
            "turns": len(messages),
            "role": judged.role,
            "characters": len(judged.content),
            "unread": judged.unread,
            "hash": self._hashed(judged.content),
            "tool_calls": [
                {"name": call.name, "characters": len(call.arguments), "hash": self._hashed(call.arguments)}
                for call in judged.tool_calls
            ],
            **(_plain(judged, verdict, policy) if self._content == "plain" else {}),
        }

    def _hashed(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        return (hmac.new(self._key, data, "sha256") if self._key else hashlib.sha256(data)).hexdigest()


def _rule(result: RuleResult) -> dict[str, Any]:
    found = {"id": result.id, "q": result.q, "threshold": result.threshold, "violated": result.violated}
    return {**found, "action": result.action, "spans": result.spans} if result.violated else found


def _plain(judged: Message, verdict: Verdict, policy: Policy) -> dict[str, Any]:
    """Return the texts without what is to be redacted; arguments, in which nobody says where it is, not at all."""
    found = [rule for rule in verdict.violated if rule.action == "redact"]
    spans = [span for rule in found for span in rule.spans]
    unsearched = verdict.degraded and any(policy.action_of(rule) == "redact" for rule in policy.rules)
    if unsearched or (found and not spans):
        return {"content": policy.defaults.redaction, "arguments": None}
    text = cut(judged.content, spans, policy.defaults.redaction)
    return {"content": text, "arguments": None if found else [call.arguments for call in judged.tool_calls]}
