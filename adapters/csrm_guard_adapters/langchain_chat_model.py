"""A chat model whose prompts and answers are judged: `GuardedChatModel(model=ChatOpenAI(), guard=Guard("bank"))`.

The inner model is called with callbacks of its own, so that no unjudged token reaches a stream of events or messages;
what leaves is what was judged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding, RunnableParallel, RunnableSequence
from pydantic import ConfigDict, Field, InstanceOf

from csrm_guard import Blocked, Guard, Message, Verdict
from csrm_guard.drivers import adrive, apump, drive, pump
from csrm_guard.flow import Admission, Ending, Outcome, Request, admit, converse
from csrm_guard.stream import Gated, Mode
from csrm_guard_adapters.langchain_messages import as_message, as_messages, edited, gated, noted, written
from csrm_guard_adapters.langchain_outlet import Outlet

__all__ = ["GuardedChatModel"]

# Only these: the caller's callbacks would see tokens before they are judged.
_ALONE: Any = {"callbacks": []}


class GuardedChatModel(BaseChatModel):
    """A chat model whose prompts and answers are judged; streams are gated.

    A block is an ordinary answer by default, with the policy's fallback as its text and
    `response_metadata["finish_reason"] == "content_filter"`, so that `with_fallbacks` and agents do not try again;
    structured output, which a text cannot be, raises `csrm_guard.Blocked`. The verdicts stand in
    `response_metadata["csrm_guard"]`.

    Attributes:
        model: the model that answers, with tools bound or not.
        guard: judges.
        on_block: `return` the fallback, or `raise` `csrm_guard.Blocked`.
        stream_mode: when streamed text leaves (`csrm_guard.stream`).
        speculative: begin the call beside the judgement of the prompt.
        judged: new messages that have passed already and are not judged again.
        on_stop: told of the verdict for which the policy's text stands in for an answer.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: InstanceOf[Runnable[Any, Any]]
    guard: InstanceOf[Guard]
    on_block: Literal["return", "raise"] = "return"
    stream_mode: Mode = "gated"
    speculative: bool = False
    judged: InstanceOf[frozenset[Message]] = Field(default=frozenset(), exclude=True, repr=False)
    on_stop: Callable[[Verdict], None] | None = Field(default=None, exclude=True, repr=False)

    @property
    def model_name(self) -> str:
        """The inner model's name, by which agents tell what it can do; its class's if it has none."""
        names = (getattr(self.model, name, None) for name in ("model_name", "model"))
        return next((name for name in names if isinstance(name, str) and name), type(self.model).__name__)

    def _resolve_model_profile(self) -> Any:
        return getattr(self.model, "profile", None)

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

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Runnable[Any, Any]:
        """Return the inner model's structured output, guarded.

        Raises:
            Blocked: when run, where the policy's text would stand in for the object; with `include_raw` it is `raw`.
        """
        guarded = self if include_raw else self.model_copy(update={"on_stop": _refuse})
        found = self.model.with_structured_output(schema, include_raw=include_raw, **kwargs)  # type: ignore[attr-defined]
        placed = _in_place(found, self.model, guarded)
        # Otherwise the inner model is called from where we do not see it: tools are the way that all models know.
        return placed or BaseChatModel.with_structured_output(guarded, schema, include_raw=include_raw, **kwargs)

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

        return self._result(drive(self._flow(messages), self.guard.score, ask))

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

        return self._result(await adrive(self._flow(messages), self.guard.ascore, ask))

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
        admission = drive(admit(self.guard.policy, talk, judged=self.judged), self.guard.score, ask)
        outlet = self._outlet(talk, admission)
        if admission.reply is None:
            assert admission.stopped is not None
            yield _chunk(outlet.instead(admission.stopped, admission.ending))
            return
        try:
            for out in pump(outlet.gate, self.guard.score, map(gated, admission.reply)):
                yield _chunk(outlet.message(out))
            yield from map(_chunk, outlet.rest())
        finally:
            _close(admission.reply)

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
        admission = await adrive(admit(self.guard.policy, talk, judged=self.judged), self.guard.ascore, ask)
        outlet = self._outlet(talk, admission)
        if admission.reply is None:
            assert admission.stopped is not None
            yield _chunk(outlet.instead(admission.stopped, admission.ending))
            return
        upstream = admission.reply

        async def read() -> AsyncIterator[Gated[Any]]:
            async for chunk in upstream:
                yield gated(chunk)

        try:
            async for out in apump(outlet.gate, self.guard.ascore, read()):
                yield _chunk(outlet.message(out))
            for message in outlet.rest():
                yield _chunk(message)
        finally:
            await _aclose(upstream)

    def _flow(self, messages: list[BaseMessage]) -> Any:
        talk, policy = as_messages(messages), self.guard.policy
        return converse(policy, talk, _read, speculative=self.speculative, judged=self.judged)

    def _outlet(self, talk: tuple[Message, ...], admission: Admission[Any]) -> Outlet:
        sent = tuple(replace(m, content=admission.edits.get(i, m.content)) for i, m in enumerate(talk))
        before = [(v, _ending(v, admission)) for v in admission.verdicts]
        return Outlet(self.guard.policy, sent, self.stream_mode, self.stop, before)

    def _result(self, outcome: Outcome[BaseMessage]) -> ChatResult:
        found: list[tuple[Verdict, Ending]] = [(v, _ending(v, outcome.admission)) for v in outcome.admission.verdicts]
        message = outcome.reply
        if message is None:
            assert outcome.admission.stopped is not None
            self.stop(outcome.admission.stopped, outcome.admission.ending)
            message = self._fallback(outcome.admission.ending)
        for choice in outcome.choices:
            if choice.verdict is not None:
                found.append((choice.verdict, choice.ending))
                self.stop(choice.verdict, choice.ending)
            message = written(message, choice)
        return ChatResult(generations=[ChatGeneration(message=noted(message, found))])

    def stop(self, verdict: Verdict, ending: Ending) -> None:
        """Tell that an answer is not the model's, or raise; nothing happens if it is.

        Raises:
            Blocked: the policy blocks, and `on_block` is `raise`.
        """
        if ending in ("fallback", "blocked") and self.on_stop is not None:
            self.on_stop(verdict)
        if ending == "blocked" and self.on_block == "raise":
            raise Blocked(verdict)

    def _fallback(self, ending: Ending) -> AIMessage:
        reason = "content_filter" if ending == "blocked" else "stop"
        return AIMessage(self.guard.policy.defaults.fallback, response_metadata={"finish_reason": reason})


def _chunk(message: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message)


def _read(reply: BaseMessage) -> list[Message]:
    return [as_message(reply)]


def _ending(verdict: Verdict, admission: Admission[Any]) -> Ending:
    if verdict.allowed:
        return "kept"
    return admission.ending if verdict.action != "redact" or admission.stopped is verdict else "redacted"


def _refuse(verdict: Verdict) -> None:
    raise Blocked(verdict)


def _in_place(found: Any, inner: Any, guarded: Any) -> Runnable[Any, Any] | None:
    """Return a runnable with the guarded model in the place of the inner one; None: it is not there."""
    if found is inner:
        return guarded  # type: ignore[no-any-return]
    if isinstance(found, RunnableBinding):
        bound = _in_place(found.bound, inner, guarded)
        return found.model_copy(update={"bound": bound}) if bound else None
    if isinstance(found, RunnableSequence):
        first = _in_place(found.first, inner, guarded)
        return RunnableSequence(first, *found.steps[1:]) if first else None
    if isinstance(found, RunnableParallel):
        steps = {name: _in_place(step, inner, guarded) for name, step in found.steps__.items()}
        return RunnableParallel({name: step for name, step in steps.items() if step}) if all(steps.values()) else None
    return None


def _close(upstream: Any) -> None:
    close: Callable[[], object] | None = getattr(upstream, "close", None)
    if close is not None:
        close()


async def _aclose(upstream: Any) -> None:
    close: Callable[[], Awaitable[object]] | None = getattr(upstream, "aclose", None)
    if close is not None:
        await close()
