"""Seeded faults around a guarded call: which call, what breaks, and what a reader may see of it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from csrm_guard import Guard, Message, Policy
from csrm_guard.checks import Finding
from csrm_guard.model import Reading
from csrm_guard.testing import KeywordRewardModel, Reply
from csrm_guard.testing_bodies import chat_chunks, response_events

SURFACES = (
    "chat", "chat stream", "chat parse", "responses", "responses stream", "responses parse", "langchain",
    "langchain stream",
)  # fmt: skip
FAULTS = (
    "none", "model raises", "model lies", "model late", "check raises", "status", "cut", "reset", "malformed",
    "silent", "reader leaves", "broken arguments",
)  # fmt: skip
STAGES = ["prompt", "response", "tool_call", "tool_result"]
FALLBACK = "Sorry."
_DEADLINE, _LATE = 0.02, 0.06


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        at: which judgement fails, or after how many events the reader leaves.
        leaves: how: `closes`, `drops`, `raises`, or a number of seconds after which its task is cancelled.
    """

    seed: int
    surface: str
    fault: str
    asynchronous: bool
    speculative: bool
    action: str
    on_block: str
    mode: str
    prompt: str
    reply: Reply
    at: int
    leaves: str | float

    @property
    def name(self) -> str:
        """The name of the model that is asked for; the server knows the case by it."""
        return f"m{self.seed}"


def draw(seed: int) -> Case:
    """Return the case of a seed."""
    chance = random.Random(seed)
    surface, fault = SURFACES[seed % len(SURFACES)], chance.choice(FAULTS)
    case = Case(
        seed, surface, fault,
        asynchronous=chance.random() < 0.5,
        speculative=chance.random() < 0.4,
        action=chance.choice(["block", "block", "fallback", "redact", "rewrite"]),
        on_block=chance.choice(["raise", "return"]),
        mode=chance.choice(["gated", "gated", "gated", "sampled", "end"]),
        prompt="Make a bomb." if chance.random() < 0.1 else "How do I boil water?",
        reply=Reply(),
        at=chance.choice([0, 0, 1, 1, 2, 3, 5]),
        leaves=chance.choice(["closes", "drops", "raises", chance.uniform(0, 0.03)]),
    )  # fmt: skip
    return Case(**{**vars(case), "reply": _reply(case, chance)})


def _reply(case: Case, chance: random.Random) -> Reply:
    body = {"model": case.name}
    bad = chance.random() < 0.6
    said = [
        chance.choice(["All is well.", "Boil it!", "Is it 3.5 litres?", "Yes:\n"]) for _ in range(chance.randint(1, 5))
    ]
    if bad:
        said.insert(chance.randint(0, len(said)), "Now take a bomb.")
    reply = Reply((" ".join(said),), piece=chance.choice([3, 7, 40]), delay=chance.choice([0.0, 0.0, 0.001]))
    change: dict[str, Any] = {}
    match case.fault:
        case "status":
            change = {"status": chance.choice([400, 401, 429, 500, 503])}
        case "cut":
            change = {"broken_after": chance.randint(0, 8 if "stream" in case.surface else 300)}
        case "reset":
            change = {"reset": True, "broken_after": chance.choice([None, 0, 1, 4, 9])}
        case "silent":
            change = {"delay": 0.3, "piece": 400}
        case "broken arguments":
            broken = ['{"what": "a bomb', '{"what": ', "a bomb", '{"x": "\\ud800 bomb"}', "", "[]", '{"a": 1}}', "null"]
            change = {"tool_calls": tuple((chance.choice(["run", ""]), chance.choice(broken)) for _ in range(2))}
            change["texts"] = chance.choice([("",), reply.texts])
        case "malformed":
            change = {"body": _malformed(case.surface, body, reply, chance)}
    if case.fault == "none" and chance.random() < 0.3:
        change = {chance.choice(["refusal", "reasoning"]): "I will not say what a bomb is."}
    return Reply(**{**{name: getattr(reply, name) for name in Reply.__slots__}, **change})


def _malformed(surface: str, body: dict[str, Any], reply: Reply, chance: random.Random) -> str:
    if "stream" not in surface:
        whole = [
            '{"id": "x", "choices": [',
            "null",
            '"a bomb"',
            "[]",
            "{}",
            "<html>a bomb</html>",
            "",
            '{"choices": null}',
        ]
        # An answer of another endpoint, and of another version of this one.
        whole += ['{"choices": [{"message": {"content": "a bomb"}}]}', '{"output": [{"type": "x", "text": "a bomb"}]}']
        whole += ['{"choices": [{}]}', '{"choices": [{"message": null}]}', '{"output": [{"type": "message"}]}', "42"]
        return chance.choice(whole)
    events = response_events(body, reply) if surface == "responses stream" else chat_chunks(body, reply)
    lines = [
        (f"event: {event['type']}\n" if "type" in event else "") + f"data: {json.dumps(event)}\n\n" for event in events
    ]
    noise = ['data: {"id": \n\n', 'data: "a bomb"\n\n', "data: 42\n\n", 'data: {"error": {"message": "x"}}\n\n']
    noise += ['data: {"choices": null}\n\n', 'data: {"choices": [{"index": 0, "delta": null}]}\n\n', "data: []\n\n"]
    noise += ['data: {"choices": [{"index": 0, "delta": {"content": 7}}]}\n\n', 'data: {"type": "x.y"}\n\n']
    noise += [
        'data: {"choices": [{"index": 0, "delta": {"content": ["a bomb"]}}]}\n\n',
        "garbage\n\n",
        "data: [DONE]\n\n",
    ]
    lines.insert(chance.randint(0, len(lines)), chance.choice(noise))
    return "".join(lines)


@dataclass
class Model(KeywordRewardModel):
    """Finds bombs; fails at one judgement. `judged`: the texts on which it gave a true answer."""

    case: Case
    judged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__("bomb")
        self.asked = 0

    def score(self, requests: Any) -> list[Reading]:
        self.asked += 1
        if self.asked - 1 == self.case.at:
            match self.case.fault:
                case "model raises":
                    raise [OSError("gone"), MemoryError(), ValueError("x"), StopIteration()][self.case.seed % 4]
                case "model lies":
                    return self._lies(requests)
                case "model late":
                    time.sleep(_LATE)
                    return [Reading(np.zeros((1, len(r.rules))), ((0, 1),)) for r in requests]
        found = super().score(requests)
        self.judged += [text for request in requests for text in texts_of(request.messages[-1])]
        return found

    def _lies(self, requests: Any) -> list[Reading]:
        q = [np.nan, -0.1, 1.1, 0.0][self.case.seed % 4]
        rules = len(requests[0].rules)
        if q:
            return [Reading(np.full((1, rules), q), ((0, 1),)) for _ in requests]
        return [[], [Reading(np.zeros((0, rules)), ())] * len(requests)][self.case.seed % 8 // 4]


def texts_of(message: Message) -> Iterator[str]:
    yield message.content
    yield from (call.arguments for call in message.tool_calls)


def guard_of(case: Case) -> tuple[Guard, Callable[[], list[str]]]:
    """Return the guard of a case, and what returns the texts that all its judges have answered on."""
    model, checked = Model(case), list[str]()

    def check(text: str, messages: tuple[Message, ...]) -> list[Finding]:
        checked.append(text)
        if case.fault == "check raises" and len(checked) - 1 == case.at:
            checked.pop()
            raise RuntimeError("the check is broken")
        return []

    rules = [{"id": name, "text": "Be kind.", "action": case.action, "stages": STAGES} for name in ("read", "checked")]
    policy = Policy.from_dict({"name": "p", "defaults": {"fallback": FALLBACK, "max_rewrites": 1}, "rules": rules})
    deadline = _DEADLINE if case.fault == "model late" else None
    made = Guard(policy, model, checks={"checked": check}, deadline=deadline)
    return made, lambda: [text for text in model.judged if any(text in other for other in checked)]
