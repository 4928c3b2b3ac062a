"""Guards for LangChain: `GuardedChatModel(model=ChatOpenAI(), guard=Guard("support-desk"))` in place of the model.

The guarded model calls the inner one with callbacks of its own, so that no unjudged token reaches a stream of events or
messages; what leaves is what was judged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding
from pydantic import ConfigDict, InstanceOf

from csrm_guard import Blocked, Guard, Message, Verdict
from csrm_guard.drivers import adrive, apump, drive, pump
from csrm_guard.flow import Admission, Choice, Outcome, Request, admit, converse
from csrm_guard.stream import Ended, Gated, Mode, Part, Passed, StreamGate
from csrm_guard_adapters.langchain_messages import as_message, as_messages, edited, reasoning_of, text_of

__all__ = ["GuardedChatModel"]

# Only these: the caller's callbacks would see tokens before they are judged.
_ALONE: Any = {"callbacks": []}


class GuardedChatModel(BaseChatModel):
    """A chat model whose prompts and answers are judged; streams are gated.

    A block is an ordinary answer by default, with the policy's fallback as its text and
    `response_metadata["finish_reason"] == "content_filter"`, so that `with_fallbacks` and agents do not try again. The
    verdicts stand in `response_metadata["csrm_guard"]`.

    Attributes:
        model: the model that answers, with tools bound or not.
        guard: judges.
        on_block: `return` the fallback, or `raise` `csrm_guard.Blocked`.
        stream_mode: when streamed text leaves (`csrm_guard.stream`).
        speculative: begin the call beside the judgement of the prompt.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: InstanceOf[Runnable[Any, Any]]
    guard: InstanceOf[Guard]
    on_block: Literal["return", "raise"] = "return"
    stream_mode: Mode = "gated"
    speculative: bool = False

    @property
    def _llm_type(self) -> str:
        return "csrm-guarded"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        inner = getattr(self.model, "_identifying_params", None) or {}
        return {**inner, "policy_hash": self.guard.policy.hash, "guard_model": self.guard.model.id}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """Return the inner model's parameters for traces; a model without a name gets its class's."""
        found: LangSmithParams = (
            self.model._get_ls_params(stop=stop, **kwargs)
            if isinstance(self.model, BaseChatModel)
            else super()._get_ls_params(stop=stop, **kwargs)
        )
        return {"ls_model_name": type(self.model).__name__, **found}

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> Runnable[Any, Any]:
        """Return a guarded model that may call tools; their arguments are judged before the call is seen."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        bound = self.model.bind_tools(tools, **kwargs)  # type: ignore[attr-defined]
        # What the inner model binds (its own form of the tools) is bound to this one and reaches it with each call.
        return (
            self.bind(**bound.kwargs)
            if isinstance(bound, RunnableBinding)
            else self.model_copy(update={"model": bound})
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        def ask(request: Request) -> BaseMessage:
            found: BaseMessage = self.model.invoke(edited(messages, request), _ALONE, stop=stop, **kwargs)
            return found

        policy = self.guard.policy
        flow = converse(policy, as_messages(messages), _read, speculative=self.speculative)
        return self._result(drive(flow, self.guard.score, ask))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async def ask(request: Request) -> BaseMessage:
            found: BaseMessage = await self.model.ainvoke(edited(messages, request), _ALONE, stop=stop, **kwargs)
            return found

        flow = converse(self.guard.policy, as_messages(messages), _read, speculative=self.speculative)
        return self._result(await adrive(flow, self._judge, ask))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        def ask(request: Request) -> Iterator[Any]:
            return self.model.stream(edited(messages, request), _ALONE, stop=stop, **kwargs)

        talk = as_messages(messages)
        admission = drive(admit(self.guard.policy, talk), self.guard.score, ask)
        if admission.stopped is not None:
            yield self._instead(admission)
            return
        gate: StreamGate[Any] = StreamGate(self.guard.policy, _sent(talk, admission), mode=self.stream_mode)
        assert admission.reply is not None
        upstream = admission.reply
        try:
            for out in pump(gate, self.guard.score, map(_gated, upstream)):
                yield self._chunk(out)
        finally:
            _close(upstream)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async def ask(request: Request) -> AsyncIterator[Any]:
            return self.model.astream(edited(messages, request), _ALONE, stop=stop, **kwargs)

        talk = as_messages(messages)
        admission = await adrive(admit(self.guard.policy, talk), self._judge, ask)
        if admission.stopped is not None:
            yield self._instead(admission)
            return
        gate: StreamGate[Any] = StreamGate(self.guard.policy, _sent(talk, admission), mode=self.stream_mode)
        assert admission.reply is not None
        upstream = admission.reply

        async def gated() -> AsyncIterator[Gated[Any]]:
            async for chunk in upstream:
                yield _gated(chunk)

        try:
            async for out in apump(gate, self._judge, gated()):
                yield self._chunk(out)
        finally:
            await _aclose(upstream)

    async def _judge(self, views: Sequence[tuple[Message, ...]]) -> list[Verdict]:
        return await self.guard.ascore(views)

    def _result(self, outcome: Outcome[BaseMessage]) -> ChatResult:
        if outcome.blocked is not None and self.on_block == "raise":
            raise Blocked(outcome.blocked)
        verdicts = [*outcome.admission.verdicts, *(c.verdict for c in outcome.choices if c.verdict is not None)]
        if outcome.reply is None:
            message: BaseMessage = self._fallback(outcome.admission.ending)
        else:
            message = _written(outcome.reply, outcome.choices[0])
        notes = {**message.response_metadata, "csrm_guard": [_note(verdict) for verdict in verdicts]}
        return ChatResult(generations=[ChatGeneration(message=message.model_copy(update={"response_metadata": notes}))])

    def _instead(self, admission: Admission[Any]) -> ChatGenerationChunk:
        """Return the chunk that stands in for a call that was not made."""
        assert admission.stopped is not None
        if admission.ending == "blocked" and self.on_block == "raise":
            raise Blocked(admission.stopped)
        return _end(admission.stopped, admission.ending, self.guard.policy.defaults.fallback)

    def _fallback(self, ending: str) -> AIMessage:
        reason = "content_filter" if ending == "blocked" else "stop"
        return AIMessage(self.guard.policy.defaults.fallback, response_metadata={"finish_reason": reason})

    def _chunk(self, out: Passed[Any] | Ended) -> ChatGenerationChunk:
        if isinstance(out, Ended):
            if out.ending == "blocked" and self.on_block == "raise":
                raise Blocked(out.verdict)
            return _end(out.verdict, out.ending, out.text)
        message: AIMessageChunk = out.chunk
        if out.texts:
            message = message.model_copy(update={"content": next(iter(out.texts.values()))})
        return ChatGenerationChunk(message=message)


def _read(reply: BaseMessage) -> list[Message]:
    return [as_message(reply)]


def _sent(talk: tuple[Message, ...], admission: Admission[Any]) -> tuple[Message, ...]:
    return tuple(Message(m.role, admission.edits.get(i, m.content), m.tool_calls, m.unread) for i, m in enumerate(talk))


def _gated(chunk: Any) -> Gated[Any]:
    """Return a chunk of a stream with what it holds; all belong to choice 0."""
    parts = []
    text, thought = text_of(chunk), reasoning_of(chunk)
    if text:
        parts.append(Part((0, "content", 0), text))
    if thought:
        parts.append(Part((0, "reasoning", 0), thought))
    for call in getattr(chunk, "tool_call_chunks", ()):
        parts.append(Part((0, "tool", call.get("index") or 0), call.get("args") or "", call.get("name") or ""))
    over = getattr(chunk, "chunk_position", None) == "last"
    return Gated(chunk, tuple(parts), frozenset({0}), frozenset({0} if over else ()))


def _written(reply: BaseMessage, choice: Choice) -> BaseMessage:
    """Return the model's message, or one without what may not be seen, its id and usage kept."""
    if choice.ending == "kept":
        return reply
    change: dict[str, Any] = {"content": choice.text, "additional_kwargs": {}}
    if choice.ending != "redacted":
        reason = "content_filter" if choice.ending == "blocked" else "stop"
        change |= {
            "tool_calls": [],
            "invalid_tool_calls": [],
            "response_metadata": {**reply.response_metadata, "finish_reason": reason},
        }
    return reply.model_copy(update=change)


def _end(verdict: Verdict, ending: str, text: str) -> ChatGenerationChunk:
    reason = "content_filter" if ending == "blocked" else "stop"
    notes = {"finish_reason": reason, "csrm_guard": [_note(verdict)]}
    return ChatGenerationChunk(message=AIMessageChunk(content=text, response_metadata=notes, chunk_position="last"))


def _note(verdict: Verdict) -> dict[str, Any]:
    """Return what a trace should keep of a verdict."""
    return {
        "allowed": verdict.allowed,
        "action": verdict.action,
        "p_safe": verdict.p_safe,
        "violated": [rule.id for rule in verdict.violated],
        "policy_hash": verdict.policy_hash,
    }


def _close(upstream: Any) -> None:
    close: Callable[[], object] | None = getattr(upstream, "close", None)
    if close is not None:
        close()


async def _aclose(upstream: Any) -> None:
    close: Callable[[], Awaitable[object]] | None = getattr(upstream, "aclose", None)
    if close is not None:
        await close()
