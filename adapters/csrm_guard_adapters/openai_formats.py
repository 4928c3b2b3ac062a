"""What an endpoint of an OpenAI-style client must be able to say of its requests, replies and streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from csrm_guard import Message, MessageError
from csrm_guard.flow import Choice, Ending, Request
from csrm_guard.stream import Ended, Gated, Passed

__all__ = ["REASONS", "Events", "Format", "listed", "replayable"]

# How a choice of chat completions, or of completions, ends.
REASONS: dict[Ending, Literal["stop", "content_filter"]] = {
    "fallback": "stop",
    "blocked": "content_filter",
    "redacted": "stop",
    "kept": "stop",
}
Arguments: TypeAlias = dict[str, Any]


class Events(Protocol):
    """One stream, read and written."""

    def gated(self, event: Any) -> Gated[Any]:
        """Return an event with what it holds."""
        ...

    def out(self, out: Passed[Any] | Ended) -> list[Any]:
        """Return the events that leave: one that may, or those that end a choice."""
        ...


class Format(Protocol):
    """How one endpoint's requests and replies are read and written."""

    @property
    def parsed(self) -> bool:
        """Return whether replies come parsed into a form of the caller's."""
        ...

    @property
    def judged(self) -> frozenset[str]:
        """Return the names of the arguments that hold what is judged; they may not come in `extra_body`."""
        ...

    def prepared(self, kwargs: Arguments) -> Arguments:
        """Return arguments that can be read twice."""
        ...

    def messages(self, kwargs: Arguments) -> tuple[Message, ...]:
        """Return the conversation that is sent."""
        ...

    def request(self, kwargs: Arguments, request: Request) -> Arguments:
        """Return the arguments with edits and feedback written in."""
        ...

    def choices(self, kwargs: Arguments) -> int:
        """Return how many answers are asked for."""
        ...

    def again(self, kwargs: Arguments) -> bool:
        """Return whether the model may be asked again for an answer that is to be written anew."""
        ...

    def read(self, reply: Any) -> list[Message]:
        """Return the judged parts of a reply."""
        ...

    def write(self, reply: Any, choices: Sequence[Choice]) -> Any:
        """Return the reply without what may not be seen."""
        ...

    def stopped(self, kwargs: Arguments, ending: Ending, text: str) -> Any:
        """Return what stands in for a call that was not made."""
        ...

    def events(self, kwargs: Arguments) -> Events:
        """Return what reads and writes a stream of this call."""
        ...


def replayable(kwargs: Arguments, name: str) -> Arguments:
    """Return the arguments with one that is an iterator made a list."""
    value = kwargs.get(name)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return {**kwargs, name: list(value)}
    return kwargs


def listed(reply: Any, name: str) -> Sequence[Any]:
    """Return what a reply lists under a name.

    Raises:
        MessageError: nothing is listed there: it is no reply of this endpoint, and what it holds cannot be judged.
    """
    found = getattr(reply, name, None)
    if not isinstance(found, list | tuple):
        raise MessageError(f"the server's answer has no list of {name}: what it holds instead cannot be judged")
    return found
