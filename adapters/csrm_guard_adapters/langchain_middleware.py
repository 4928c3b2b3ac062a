"""A guard in a LangChain agent: `create_agent(model, tools, middleware=[GuardMiddleware(guard)])`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from csrm_guard import Blocked, Guard, Message, Verdict
from csrm_guard.drivers import adrive, drive
from csrm_guard.flow import Choice, Ending, Request, new_turns, screen, settle
from csrm_guard.steps import Judge
from csrm_guard.stream import Mode
from csrm_guard_adapters.langchain_chat_model import GuardedChatModel
from csrm_guard_adapters.langchain_messages import as_message, as_messages, edited, noted, notes_of, with_text, written
from csrm_guard_adapters.langchain_passed import Passed

try:
    from langchain.agents.middleware import AgentMiddleware, ModelResponse, hook_config
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError('GuardMiddleware needs LangChain\'s agents: pip install "langchain>=1.4"') from exc

__all__ = ["GuardMiddleware"]


class GuardMiddleware(AgentMiddleware[Any, Any, Any]):
    """Judge what enters and leaves an agent's model and tools, each message once.

    * What is new is judged before the model is called; a block ends the turn with the policy's fallback.
    * The model is called as a `GuardedChatModel`: tokens are gated in every stream, tool calls judged with the answer.
    * An answer that another middleware has changed is judged again.
    * A tool's arguments are judged before it runs, unless they were with the answer; its result before anyone sees it.
      What may not be seen is replaced by the fallback, with `status="error"`, and the agent goes on.

    Put it last in the list, so that it judges what the others really send, and the model that they chose.

    Args:
        guard: judges.
        on_block: `return` the policy's fallback, or `raise` `csrm_guard.Blocked`.
        stream_mode: when streamed text leaves (`csrm_guard.stream`).
    """

    def __init__(
        self, guard: Guard, *, on_block: Literal["return", "raise"] = "return", stream_mode: Mode = "gated"
    ) -> None:
        super().__init__()
        self.guard, self.on_block, self.stream_mode = guard, on_block, stream_mode
        self._passed = Passed()

    @property
    def name(self) -> str:
        """By policy, so that an agent may have several."""
        return f"{type(self).__name__}-{self.guard.policy.name}"

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Judge what is new.

        Raises:
            Blocked: the policy blocks, and `on_block` is `raise`.
        """
        return drive(self._enter(state["messages"]), self.guard.score)

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Do what `before_model` does in asyncio."""
        return await adrive(self._enter(state["messages"]), self.guard.ascore)

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Call the model guarded."""
        try:
            response = handler(self._guarded(request))
        except Blocked as blocked:
            return self._instead(request, blocked)
        self._note(request, response)
        return response

    async def awrap_model_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do what `wrap_model_call` does in asyncio."""
        try:
            response = await handler(self._guarded(request))
        except Blocked as blocked:
            return self._instead(request, blocked)
        self._note(request, response)
        return response

    @hook_config(can_jump_to=["end"])
    def after_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Judge the answer if it is not what the guarded model said; end the turn if the policy stopped it."""
        return drive(self._leave(state["messages"]), self.guard.score)

    @hook_config(can_jump_to=["end"])
    async def aafter_model(self, state: Any, runtime: Any) -> dict[str, Any] | None:
        """Do what `after_model` does in asyncio."""
        return await adrive(self._leave(state["messages"]), self.guard.ascore)

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Judge the arguments, run the tool, judge its result."""
        refused = drive(self._arguments(request), self.guard.score)
        return refused or drive(self._result(request, handler(request)), self.guard.score)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do what `wrap_tool_call` does in asyncio."""
        refused = await adrive(self._arguments(request), self.guard.ascore)
        return refused or await adrive(self._result(request, await handler(request)), self.guard.ascore)

    def _enter(self, messages: Sequence[BaseMessage]) -> Generator[Judge, Any, dict[str, Any] | None]:
        talk = as_messages(messages)
        found = yield from screen(self.guard.policy, talk, self._known(talk))
        if found.stopped is not None:
            return {"messages": [self._answer(found.stopped, found.ending)], "jump_to": "end"}
        kept = edited(messages, Request(found.edits))
        sent = as_messages(kept)
        for place in new_turns(sent):
            self._passed.add(sent, place)
        return {"messages": [kept[place] for place in found.edits]} if found.edits else None

    def _leave(self, messages: Sequence[BaseMessage]) -> Generator[Judge, Any, dict[str, Any] | None]:
        place = _last_answer(messages)
        if place is None:
            return None
        answer, talk = messages[place], as_messages(messages[: place + 1])
        if self._passed.has(talk):
            notes = notes_of(answer, self.guard.policy.hash)
            return {"jump_to": "end"} if notes and notes[-1]["ending"] in ("fallback", "blocked") else None
        (choice,) = yield from settle(self.guard.policy, talk[:-1], [talk[-1]])
        if choice.verdict is None:
            return None
        self._raise_if(choice.verdict, choice.ending)
        said = noted(written(answer, choice), [(choice.verdict, choice.ending)])
        self._passed.add((*talk[:-1], as_message(said)))
        if choice.ending in ("kept", "redacted"):
            return {"messages": [said]}
        # LangChain reports a structured answer by a tool's result; neither may outlive it.
        reports = [_withheld(m, choice.text or "") for m in messages[place + 1 :] if isinstance(m, ToolMessage)]
        gone = {"structured_response": None} if reports else {}
        return {"messages": [said, *reports], "jump_to": "end", **gone}

    def _guarded(self, request: Any) -> Any:
        """Return a request for the same model, guarded.

        A structured answer cannot be replaced by a text: a block is raised through LangChain's parsing of it.
        """
        model = request.model
        if not (isinstance(model, GuardedChatModel) and model.guard is self.guard):
            model = GuardedChatModel(
                model=model, guard=self.guard, on_block=self.on_block, stream_mode=self.stream_mode
            )
        known = self._known(as_messages(request.state["messages"]))
        on_stop = _refuse if request.response_format is not None else None
        return request.override(model=model.model_copy(update={"judged": known, "on_stop": on_stop}))

    def _instead(self, request: Any, blocked: Blocked) -> ModelResponse[Any]:
        if blocked.verdict.policy_hash != self.guard.policy.hash:
            raise blocked  # by another guard, which was told to
        ending: Ending = "blocked" if blocked.verdict.action == "block" else "fallback"
        response = ModelResponse(result=[self._answer(blocked.verdict, ending)])
        self._note(request, response)
        return response

    def _note(self, request: Any, response: ModelResponse[Any]) -> None:
        talk = as_messages(request.state["messages"])
        for message in response.result:
            if isinstance(message, AIMessage) and notes_of(message, self.guard.policy.hash):
                self._passed.add((*talk, as_message(message)))

    def _arguments(self, request: Any) -> Generator[Judge, Any, ToolMessage | None]:
        """Return what stands in for a tool's result if its arguments are refused."""
        call = as_message(AIMessage("", tool_calls=[request.tool_call]))
        talk = _talk(request)
        if talk and self._passed.has(talk) and set(call.tool_calls) <= set(talk[-1].tool_calls):
            return None
        (choice,) = yield from settle(self.guard.policy, talk[:-1], [call])
        if choice.verdict is None or choice.ending == "kept":
            return None
        self._raise_if(choice.verdict, choice.ending)
        text, name = choice.text or self.guard.policy.defaults.fallback, request.tool_call["name"]
        refused = ToolMessage(text, name=name, tool_call_id=request.tool_call["id"], status="error")
        self._passed.add((*talk, as_message(refused)))
        found: ToolMessage = noted(refused, [(choice.verdict, choice.ending)])
        return found

    def _result(self, request: Any, result: Any) -> Generator[Judge, Any, Any]:
        """Return a tool's result, or its update of the state, as far as it may be seen."""
        if isinstance(result, ToolMessage):
            return (yield from self._seen(_talk(request), [result]))[0]
        update = getattr(result, "update", None)
        if not isinstance(update, dict) or not isinstance(update.get("messages"), list):
            return result  # what it adds to the conversation is judged before the model is called
        messages = update["messages"]
        places = [i for i, message in enumerate(messages) if isinstance(message, ToolMessage)]
        seen = yield from self._seen(_talk(request), [messages[i] for i in places])
        news = dict(zip(places, seen, strict=True))
        return replace(result, update={**update, "messages": [news.get(i, m) for i, m in enumerate(messages)]})

    def _seen(
        self, talk: tuple[Message, ...], results: Sequence[ToolMessage]
    ) -> Generator[Judge, Any, list[BaseMessage]]:
        choices = yield from settle(self.guard.policy, talk, as_messages(results))
        found = []
        for result, choice in zip(results, choices, strict=True):
            seen = result if choice.verdict is None else self._shown(result, choice, choice.verdict)
            self._passed.add((*talk, as_message(seen)))
            found.append(seen)
        return found

    def _shown(self, result: ToolMessage, choice: Choice, verdict: Verdict) -> BaseMessage:
        self._raise_if(verdict, choice.ending)
        shown: BaseMessage = result
        if choice.ending == "redacted":
            shown = with_text(result, choice.text or "")
        elif choice.ending != "kept":
            shown = _withheld(result, choice.text or "")
        found: BaseMessage = noted(shown, [(verdict, choice.ending)])
        return found

    def _known(self, talk: tuple[Message, ...]) -> frozenset[Message]:
        return frozenset(talk[i] for i in new_turns(talk) if self._passed.has(talk, i))

    def _answer(self, verdict: Verdict, ending: Ending) -> AIMessage:
        self._raise_if(verdict, ending)
        reason = "content_filter" if ending == "blocked" else "stop"
        answer = AIMessage(self.guard.policy.defaults.fallback, response_metadata={"finish_reason": reason})
        found: AIMessage = noted(answer, [(verdict, ending)])
        return found

    def _raise_if(self, verdict: Verdict, ending: Ending) -> None:
        if ending == "blocked" and self.on_block == "raise":
            raise Blocked(verdict)


def _last_answer(messages: Sequence[BaseMessage]) -> int | None:
    return next((i for i in range(len(messages) - 1, -1, -1) if isinstance(messages[i], AIMessage)), None)


def _talk(request: Any) -> tuple[Message, ...]:
    """Return the conversation up to the answer that calls the tool; nothing if the tool runs outside of one."""
    messages = request.state.get("messages", ()) if isinstance(request.state, dict) else ()
    place = _last_answer(messages)
    return () if place is None else as_messages(messages[: place + 1])


def _withheld(result: ToolMessage, text: str) -> ToolMessage:
    return result.model_copy(update={"content": text, "artifact": None, "status": "error"})


def _refuse(verdict: Verdict) -> None:
    raise Blocked(verdict)
