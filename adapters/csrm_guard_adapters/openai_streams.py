"""A vendor's stream over other events than its own, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from openai import Stream

from csrm_guard_adapters.openai_cover import Cover, UnguardedEndpoint

__all__ = ["aclose", "close", "covered", "replayed", "sealed", "upstream_of"]


def sealed(response: Any) -> Any:
    """Return a raw response of a stream that does not hand out its bytes: only what `parse` gives was judged."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise UnguardedEndpoint("the bytes of a guarded stream are not judged: iterate over what parse() returns")

    for name in ("iter_bytes", "iter_text", "iter_lines", "read", "text", "json", "stream_to_file"):
        if callable(getattr(type(response), name, None)):
            setattr(response, name, refuse)
    return response


def upstream_of(stream: Any) -> Any:
    """Return what a vendor's stream iterates over; a stream of another make is iterated itself."""
    return getattr(stream, "_iterator", stream)


def covered(stream: Any) -> Any:
    """Return the stream, which is to iterate over `_iterator`; one of another make in a cover that does."""
    return stream if hasattr(stream, "_iterator") else Cover(stream)


def replayed(kind: type[Any], events: list[Any]) -> Any:
    """Return a vendor's stream over events that are there already."""
    stream: Any = object.__new__(kind)
    stream.response = _Nothing()
    if kind is Stream:
        stream._iterator = iter(events)
    else:

        async def replay() -> AsyncIterator[Any]:
            for event in events:
                yield event

        stream._iterator = replay()
    return stream


class _Nothing:
    """Stands where no response was received."""

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def close(found: Any) -> None:
    """Close a reply that can be closed."""
    with suppress(AttributeError):
        found.close()


async def aclose(found: Any) -> None:
    """Close a reply that can be closed, in asyncio."""
    end = getattr(found, "aclose", None) or getattr(found, "close", None)
    if end is not None:
        waiting = end()
        if asyncio.iscoroutine(waiting):
            await waiting
