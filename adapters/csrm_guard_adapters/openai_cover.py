"""An object around a vendor's, which passes for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from csrm_guard import CsrmGuardError

__all__ = ["Around", "Cover", "UnguardedEndpoint"]


class UnguardedEndpoint(CsrmGuardError, AttributeError):
    """Through this attribute of a guarded object text would pass unjudged."""


class Around:
    """Passes every attribute through, but those that a subclass defines."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        # Python asks here, too, when a property fails: what is guarded must not be had unguarded then.
        # A copy asks before it has an inner object.
        if name == "_inner" or any(name in vars(cls) for cls in type(self).__mro__):
            raise AttributeError(f"a guarded object has no attribute {name}", name=name)
        return getattr(self._inner, name)

    def __dir__(self) -> list[str]:
        return dir(self._inner)

    def __repr__(self) -> str:
        return f"guarded {self._inner!r}"

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        # isinstance(guarded, OpenAI) holds, as frameworks ask.
        return type(self._inner)


class Cover(Around):
    """A stream that yields what `_iterator` does."""

    _iterator: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await self._iterator.__anext__()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self._inner.close()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._inner.aclose()
