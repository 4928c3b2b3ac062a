"""Rows of the bulk format: a conversation, perhaps with its own policy and its label, per line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from csrm_guard.errors import MessageError, PolicyError, RowError
from csrm_guard.messages import Message, Stage, parse_messages
from csrm_guard.policy import BUILTINS, Policy

__all__ = ["Row", "Scope", "parse_object", "parse_row", "read_jsonl", "read_lines", "views"]

Scope: TypeAlias = Literal["last message", "any assistant turn"]
_STAGES = get_args(Stage)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the bulk format.

    Attributes:
        id: the row's own id.
        policy: the policy that came with the row, if one did.
        messages: the conversation.
        stage: at which stage the judged message stands.
        label: True unsafe, False safe, None unknown.
        violated: ids of the rules that are broken, where known.
        scope: what is judged: the last message, or each assistant turn with its history.
    """

    id: str
    policy: Policy | None
    messages: tuple[Message, ...]
    stage: Stage | None
    label: bool | None
    violated: tuple[str, ...] | None
    scope: Scope


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of a .jsonl or .jsonl.gz file; blank lines are passed over.

    Raises:
        RowError: not UTF-8, or it cannot be read whole; names the file.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as exc:
        raise RowError(f"{path}:{number + 1}: not UTF-8; save the file as UTF-8") from exc
    except (OSError, EOFError, zlib.error) as exc:
        raise RowError(f"{path}: cannot be read whole: {exc}") from exc


def parse_object(line: str, where: str) -> dict[str, Any]:
    """Return the object of one line.

    Raises:
        RowError: the line is not a JSON object; the message opens with `where`.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise RowError(f"{where}: not a whole line of JSON ({exc}); is the file cut short?") from exc
    if not isinstance(found, dict):
        raise RowError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a .jsonl or .jsonl.gz file; blank lines are passed over.

    Raises:
        RowError: a line that is not a JSON object, or a file cut short; names file and line.
    """
    for number, line in read_lines(path):
        yield number, parse_object(line, f"{path}:{number}")


def parse_row(data: Mapping[str, Any], where: str) -> Row:
    """Return a row; keys that the format does not know are left alone.

    Args:
        data: the object of one line.
        where: file and line, for errors.

    Raises:
        RowError: a field is missing or wrong.
    """
    try:
        stage = data.get("stage")
        if stage is not None and stage not in _STAGES:
            raise RowError(f"{where}: stage {stage!r}; use one of {', '.join(_STAGES)}")
        policy = data.get("policy")
        return Row(
            id=str(data.get("id", where)),
            policy=None if policy is None else Policy.from_dict(_known(policy), source=f"{where}: policy"),
            messages=parse_messages(data.get("messages", ()), stage),
            stage=stage,
            label=_label(data.get("label"), where),
            violated=_violated(data.get("violated"), where),
            scope=_scope(data.get("scope"), where),
        )
    except (MessageError, PolicyError) as exc:
        raise RowError(f"{where}: {exc}" if where not in str(exc) else str(exc)) from exc


def views(messages: tuple[Message, ...], scope: Scope) -> tuple[tuple[Message, ...], ...]:
    """Return the conversations whose last message is judged under a scope."""
    if scope == "last message":
        return (messages,)
    ends = [i for i, message in enumerate(messages) if message.role == "assistant"]
    return tuple(messages[: i + 1] for i in ends) or (messages,)


def _known(policy: object) -> Mapping[str, Any]:
    if not isinstance(policy, Mapping):
        raise PolicyError(f"a policy is a mapping, not {type(policy).__name__}")
    parents = policy.get("extends") or ()
    if not isinstance(parents, list | tuple) or any(parent not in BUILTINS for parent in parents):
        # Rows come from anywhere: one must not make us open files of its choice.
        raise PolicyError(f"the policy of a row may extend built-in policies only: {', '.join(BUILTINS)}")
    return policy


def _label(label: object, where: str) -> bool | None:
    if label is None:
        return None
    if label not in ("safe", "unsafe"):
        raise RowError(f"{where}: label {label!r}; use 'safe' or 'unsafe'")
    return label == "unsafe"


def _violated(ids: object, where: str) -> tuple[str, ...] | None:
    if ids is None:
        return None
    if not isinstance(ids, list | tuple) or not all(isinstance(i, str) for i in ids):
        raise RowError(f"{where}: violated must be a list of rule ids")
    return tuple(ids)


def _scope(scope: object, where: str) -> Scope:
    if scope is None:
        return "last message"
    if scope == "last message":
        return "last message"
    if scope == "any assistant turn":
        return "any assistant turn"
    raise RowError(f"{where}: scope {scope!r}; use 'last message' or 'any assistant turn'")
