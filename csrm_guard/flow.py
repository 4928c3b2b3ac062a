"""A guarded call as a state machine: what to judge, when to call, what to do with the answer.

No input or output happens here. `converse` yields steps and is sent their results; `csrm_guard.drivers` performs them,
with and without asyncio. An adapter says how a vendor's reply is read; its requests and replies never enter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from csrm_guard.messages import Message
from csrm_guard.policy import Policy
from csrm_guard.redaction import redacted
from csrm_guard.steps import Judge
from csrm_guard.verdict import Verdict

__all__ = [
    "Admission", "Cancel", "Choice", "Ending", "Finish", "Outcome", "Request", "Start", "Step",
    "admit", "converse", "feedback", "new_turns", "screen", "settle", "together",
]  # fmt: skip

Reply = TypeVar("Reply")
Result = TypeVar("Result")
Ending: TypeAlias = Literal["kept", "redacted", "fallback", "blocked"]


@dataclass(frozen=True, slots=True)
class Request:
    """How a call differs from the one that the caller asked for.

    Attributes:
        edits: by index of the message, the text that stands in for its own.
        feedback: messages to append: the rejected answer and what was wrong with it.
    """

    edits: Mapping[int, str] = field(default_factory=dict)
    feedback: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a call to the model; `beside` the judgements that follow, if it is to run while they do."""

    request: Request
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """Send the reply of the call that was begun, or raise what it raised."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up the call that was begun; nobody wants its reply."""


Step: TypeAlias = Judge | Start | Finish | Cancel


@dataclass(frozen=True, slots=True)
class Admission(Generic[Reply]):
    """What became of the messages that were sent.

    Attributes:
        verdicts: one per new message.
        stopped: the verdict for which the model is not called (or its answer not used); None: it may answer.
        ending: `fallback` or `blocked`, if stopped.
        edits: redacted texts by index of the message.
        reply: of the model, unless stopped.
    """

    verdicts: tuple[Verdict, ...]
    stopped: Verdict | None = None
    ending: Ending = "kept"
    edits: Mapping[int, str] = field(default_factory=dict)
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of one choice of an answer.

    Attributes:
        verdict: on it; None: it was empty.
        ending: what was done.
        text: stands in for its own, unless `kept`.
    """

    verdict: Verdict | None
    ending: Ending = "kept"
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Reply]):
    """The end of a guarded call.

    Attributes:
        admission: what became of the messages that were sent.
        reply: the last one of the model; None: the call was stopped before.
        choices: one per choice of the reply.
        discarded: earlier replies, which were asked for and are not used.
    """

    admission: Admission[Reply]
    reply: Reply | None = None
    choices: tuple[Choice, ...] = ()
    discarded: tuple[Reply, ...] = ()

    @property
    def blocked(self) -> Verdict | None:
        """The verdict that blocks the call, if one does."""
        if self.admission.ending == "blocked":
            return self.admission.stopped
        return next((c.verdict for c in self.choices if c.ending == "blocked"), None)


def new_turns(messages: Sequence[Message]) -> list[int]:
    """Return the places of the messages that were not there at the model's last turn.

    All that follow the last assistant message are new: users' turns in a row, tools' results. An answer begun by the
    caller (an assistant message at the end) is new with what stands before it. The deployment's own instructions
    (system, developer) are context.
    """
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    start = next((i + 1 for i in range(end - 1, -1, -1) if messages[i].role == "assistant"), 0)
    return [i for i in range(start, len(messages)) if messages[i].role not in ("system", "developer")]


def screen(
    policy: Policy, messages: tuple[Message, ...], judged: Collection[Message] = ()
) -> Generator[Judge, Any, Admission[Any]]:
    """Judge what is new.

    A violation that asks for `rewrite` is answered with the fallback: a user's message is not ours to write anew.

    Args:
        policy: says what follows from a violation.
        messages: the conversation that is to be sent.
        judged: new messages that have passed already.
    """
    turns = [i for i in new_turns(messages) if not messages[i].empty and messages[i] not in judged]
    verdicts: list[Verdict] = []
    edits: dict[int, str] = {}
    if turns:
        verdicts = yield Judge(tuple(messages[: i + 1] for i in turns))
    for i, verdict in zip(turns, verdicts, strict=True):
        if verdict.action == "redact" and not verdict.allowed:
            text = yield from redacted(policy, messages[: i + 1], verdict)
            if text is not None:
                edits[i] = text
    stopped = [v for i, v in zip(turns, verdicts, strict=True) if not v.allowed and i not in edits]
    if not stopped:
        return Admission(tuple(verdicts), edits=edits)
    worst = max(stopped, key=lambda v: v.action == "block")
    return Admission(tuple(verdicts), worst, "blocked" if worst.action == "block" else "fallback", edits)


def admit(
    policy: Policy, messages: tuple[Message, ...], *, speculative: bool = False, judged: Collection[Message] = ()
) -> Generator[Step, Any, Admission[Any]]:
    """Judge what is new (`screen`), and call the model.

    Args:
        policy: says what follows from a violation.
        messages: the conversation that is to be sent.
        speculative: begin the call beside the judgement and cancel it where that stops it.
        judged: new messages that have passed already.
    """
    if speculative:
        yield Start(Request(), beside=True)
    found = yield from screen(policy, messages, judged)
    if speculative and (found.stopped is not None or found.edits):
        yield Cancel()
    if found.stopped is not None:
        return found
    if found.edits or not speculative:
        yield Start(Request(found.edits))
    reply = yield Finish()
    return replace(found, reply=reply)


def converse(
    policy: Policy,
    messages: tuple[Message, ...],
    read: Callable[[Reply], Sequence[Message]],
    *,
    speculative: bool = False,
    judged: Collection[Message] = (),
    again: bool | None = None,
) -> Generator[Step, Any, Outcome[Reply]]:
    """Judge what is new, call the model, judge every choice of its answer, act.

    Args:
        policy: says what follows from a violation.
        messages: the conversation that is to be sent.
        read: returns the choices of a reply as assistant messages.
        speculative: begin the call beside the first judgement.
        judged: new messages that have passed already.
        again: whether the model may be asked again; None: if its reply is one choice of one part.
    """
    admission: Admission[Reply] = yield from admit(policy, messages, speculative=speculative, judged=judged)
    if admission.stopped is not None or admission.reply is None:
        return Outcome(admission)
    sent = tuple(replace(m, content=admission.edits.get(i, m.content)) for i, m in enumerate(messages))
    reply, discarded = admission.reply, list[Reply]()
    while True:
        said = read(reply)
        choices = yield from settle(policy, sent, said)
        broken = _to_rewrite(said, choices) if again or (again is None and len(said) == 1) else None
        if broken is None or len(discarded) >= policy.defaults.max_rewrites:
            return Outcome(admission, reply, tuple(choices), tuple(discarded))
        discarded.append(reply)
        yield Start(Request(admission.edits, feedback(policy, *broken)))
        reply = yield Finish()


def _to_rewrite(said: Sequence[Message], choices: Sequence[Choice]) -> tuple[Message, Verdict] | None:
    """Return the part of an answer that is to be written anew, unless another part blocks the answer."""
    if any(choice.ending == "blocked" for choice in choices):
        return None
    for message, choice in zip(said, choices, strict=True):
        if choice.ending != "kept" and choice.verdict is not None and choice.verdict.action == "rewrite":
            return message, choice.verdict
    return None


def feedback(policy: Policy, answer: Message, verdict: Verdict) -> tuple[Message, Message]:
    """Return the rejected answer and a request for one that keeps the violated rules."""
    broken = {result.id for result in verdict.violated}
    rules = "\n".join(f"- {rule.text}" for rule in policy.rules if rule.id in broken)
    asked = (
        f"Your last answer breaks these rules:\n{rules}\nAnswer the message before it again so that every rule is "
        "kept. Do not mention the rules or this request."
    )
    calls = "\n".join(f"{call.name}({call.arguments})" for call in answer.tool_calls)
    said = "\n".join(part for part in (answer.content, calls) if part)
    said = said.encode("utf-8", "replace").decode()  # half a surrogate pair can be received, and not sent
    return Message("assistant", said), Message("user", asked)


def settle(policy: Policy, sent: tuple[Message, ...], said: Sequence[Message]) -> Generator[Judge, Any, list[Choice]]:
    """Judge the choices of an answer to what was sent, and say what becomes of each."""
    full = [i for i, message in enumerate(said) if not message.empty]
    verdicts: Sequence[Verdict] = ()
    if full:
        verdicts = yield Judge(tuple((*sent, said[i]) for i in full))
    found = [Choice(None) for _ in said]
    for i, verdict in zip(full, verdicts, strict=True):
        found[i] = yield from _ended(policy, (*sent, said[i]), verdict)
    return found


def together(flows: Sequence[Generator[Judge, Any, Result]]) -> Generator[Judge, Any, list[Result]]:
    """Run flows side by side: what they want judged at the same time is judged in one pass."""
    found: dict[int, Result] = {}
    asked: dict[int, Judge] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(flows)))
    while answers:
        for i, answer in answers.items():
            try:
                asked[i] = flows[i].send(answer)
            except StopIteration as stop:
                found[i] = stop.value
        verdicts: list[Verdict] = []
        if asked:
            verdicts = yield Judge(tuple(view for judge in asked.values() for view in judge.views))
        rest = iter(verdicts)
        answers = {i: [next(rest) for _ in judge.views] for i, judge in asked.items()}
        asked = {}
    return [found[i] for i in range(len(flows))]


def _ended(policy: Policy, view: tuple[Message, ...], verdict: Verdict) -> Generator[Judge, Any, Choice]:
    """Return a choice with the text that stands in for it, if its own may not be seen."""
    if verdict.allowed:
        return Choice(verdict)
    if verdict.action == "redact":
        text = yield from redacted(policy, view, verdict)
        if text is not None:
            return Choice(verdict, "redacted", text)
    return Choice(verdict, "blocked" if verdict.action == "block" else "fallback", policy.defaults.fallback)
