"""The step that every guarded flow takes: ask for judgements."""

from __future__ import annotations

from dataclasses import dataclass

from csrm_guard.messages import Message

__all__ = ["Judge"]


@dataclass(frozen=True, slots=True)
class Judge:
    """Send one verdict per conversation, on its last message."""

    views: tuple[tuple[Message, ...], ...]
