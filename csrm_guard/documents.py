"""Read a YAML, JSON or TOML file into plain data, safely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csrm_guard.errors import DocumentError

__all__ = ["MAX_DOCUMENT_BYTES", "read_document", "read_text"]

MAX_DOCUMENT_BYTES = 2_000_000
_SUFFIXES = (".yaml", ".yml", ".json", ".toml")


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        DocumentError: missing, larger than `MAX_DOCUMENT_BYTES`, or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise DocumentError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise DocumentError(f"{path}: {len(raw)} bytes; the limit is {MAX_DOCUMENT_BYTES}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw[: exc.start].count(b"\n") + 1
        raise DocumentError(f"{path}:{line}: not UTF-8 (byte {exc.start}); save the file as UTF-8") from exc


def read_document(path: Path) -> object:
    """Return the data in a .yaml, .yml, .json or .toml file.

    Raises:
        DocumentError: unknown suffix, syntax error, duplicate key, or a YAML alias.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DocumentError(f"{path}: unknown suffix {suffix!r}; use one of {', '.join(_SUFFIXES)}")
    text = read_text(path)
    if suffix == ".json":
        return _json(text, path)
    if suffix == ".toml":
        return _toml(text, path)
    return _yaml(text, path)


def _json(text: str, path: Path) -> object:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise DocumentError(f"{path}: key {twice!r} is given twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:  # a ValueError also for a number of 5,000 digits
        where = f":{exc.lineno}" if isinstance(exc, json.JSONDecodeError) else ""
        raise DocumentError(f"{path}{where}: not JSON: {exc}") from exc


def _toml(text: str, path: Path) -> object:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DocumentError(f"{path}: not TOML: {exc}") from exc


def _yaml(text: str, path: Path) -> object:
    # Imported here: policies built in Python never need a YAML parser.
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loading without aliases (they make YAML bombs) and without duplicate keys."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it untyped
                raise DocumentError(
                    f"{path}:{event.start_mark.line + 1}: YAML aliases are not read; write the value out"
                )
            node: yaml.Node | None = super().compose_node(parent, index)
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise DocumentError(f"{path}:{key.start_mark.line + 1}: a key must be plain text")
                if key.value in seen:
                    raise DocumentError(f"{path}:{key.start_mark.line + 1}: key {key.value!r} is given twice")
                seen.add(key.value)
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    try:
        return yaml.load(text, Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise DocumentError(f"{path}{where}: not YAML: {getattr(exc, 'problem', exc)}") from exc
    except ValueError as exc:
        # PyYAML lets Python's own error through for a date or a number that cannot be.
        raise DocumentError(f"{path}: not YAML: {exc}") from exc
    except RecursionError as exc:
        raise DocumentError(f"{path}: nested too deeply") from exc
