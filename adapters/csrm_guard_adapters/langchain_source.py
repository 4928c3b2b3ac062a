"""Streams that can be ended: LangChain reads what a step was given to its end, to trace it, long after a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

__all__ = ["AsyncSource", "Source"]


class Source:
    """The chunks that come in, until it is closed."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        self._chunks, self._closed = chunks, False

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        return next(self._chunks)

    def close(self) -> None:
        """End it, and the stream that it reads."""
        self._closed = True
        close: Callable[[], object] | None = getattr(self._chunks, "close", None)
        if close is not None:
            close()


class AsyncSource:
    """What `Source` is, in asyncio."""

    def __init__(self, chunks: AsyncIterator[Any]) -> None:
        self._chunks, self._closed = chunks, False

    def __aiter__(self) -> AsyncSource:
        return self

    async def __anext__(self) -> Any:
        if self._closed:
            raise StopAsyncIteration
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """End it, and the stream that it reads."""
        self._closed = True
        close: Callable[[], Awaitable[object]] | None = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()
