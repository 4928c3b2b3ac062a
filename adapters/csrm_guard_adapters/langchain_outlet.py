"""What a gate lets out of a stream of LangChain's chunks, as chunks; the last one carries the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessageChunk, BaseMessage

from csrm_guard import Message, Policy, Verdict
from csrm_guard.flow import Ending
from csrm_guard.stream import Ended, Mode, Passed, StreamGate
from csrm_guard_adapters.langchain_messages import changed, closing, noted

__all__ = ["Outlet"]


class Outlet:
    """The end of a gated stream that the reader sees.

    Args:
        policy: says what follows from a violation.
        sent: the conversation that is answered.
        mode: when text leaves.
        stop: told of the verdict that ends the stream, before its last chunk is made; may raise.
        before: verdicts on what was sent.
    """

    def __init__(
        self,
        policy: Policy,
        sent: tuple[Message, ...],
        mode: Mode,
        stop: Callable[[Verdict, Ending], None],
        before: Sequence[tuple[Verdict, Ending]] = (),
    ) -> None:
        self.gate: StreamGate[Any] = StreamGate(policy, sent, mode=mode)
        self._policy, self._stop, self._before, self._over = policy, stop, list(before), False

    def instead(self, verdict: Verdict, ending: Ending) -> BaseMessage:
        """Return the chunk that stands in for a call that was not made."""
        self._stop(verdict, ending)
        found: BaseMessage = noted(closing(ending, self._policy.defaults.fallback), self._before)
        return found

    def message(self, out: Passed[Any] | Ended) -> BaseMessage:
        """Return what leaves as a chunk."""
        if isinstance(out, Ended):
            self._over = True
            self._stop(out.verdict, out.ending)
            found: BaseMessage = noted(closing(out.ending, out.text), [*self._before, (out.verdict, out.ending)])
            return found
        message = changed(out.chunk, out.texts)
        if getattr(message, "chunk_position", None) == "last":
            self._over = True
            message = noted(message, self._found())
        return message

    def rest(self) -> Iterator[BaseMessage]:
        """Yield a last chunk with the verdicts, if the model did not say which was the last."""
        if not self._over:
            yield noted(AIMessageChunk(content="", chunk_position="last"), self._found())

    def _found(self) -> list[tuple[Verdict, Ending]]:
        after = zip(self.gate.verdicts.values(), self.gate.endings, strict=True)
        return [*self._before, *after]
