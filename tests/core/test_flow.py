import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from csrm_guard import Guard, Message, Policy
from csrm_guard.checks import DenylistCheck
from csrm_guard.drivers import adrive, drive
from csrm_guard.flow import Outcome, Request, admit, converse, feedback, new_turns
from csrm_guard.testing import KeywordRewardModel

user, bot = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))
TALK = (user("How?"),)


def policy(action: str = "block", **defaults: object) -> Policy:
    return Policy.from_dict({
        "name": "p",
        "defaults": {"fallback": "Sorry.", **defaults},
        "rules": [{"id": "bombs", "text": "No bombs.", "action": action}],
    })  # fmt: skip


class Model:
    """A scripted chat model; each reply is a list of choices."""

    def __init__(self, *replies: Sequence[str] | str) -> None:
        self.replies = [[reply] if isinstance(reply, str) else list(reply) for reply in replies]
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> list[str]:
        self.requests.append(request)
        return self.replies.pop(0)

    async def acall(self, request: Request) -> list[str]:
        await asyncio.sleep(0)
        return self(request)


def read(reply: list[str]) -> list[Message]:
    return [bot(text) for text in reply]


@pytest.fixture(params=["sync", "async", "sync speculative", "async speculative"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def run(kind: str, made: Policy, model: Model, messages: tuple[Message, ...] = TALK) -> Outcome[list[str]]:
    guard = Guard(made, KeywordRewardModel("bomb"))
    flow = converse(made, messages, read, speculative="speculative" in kind)
    if kind.startswith("sync"):
        return drive(flow, guard.score, model)

    async def judge(views):
        return await asyncio.to_thread(guard.score, views)

    return asyncio.run(adrive(flow, judge, model.acall))


def test_an_allowed_call_comes_back_untouched(kind: str):
    outcome = run(kind, policy(), Model("fine"))
    assert outcome.reply == ["fine"]
    assert [(c.ending, c.text) for c in outcome.choices] == [("kept", None)]
    assert [v.allowed for v in outcome.admission.verdicts] == [True]
    assert outcome.blocked is None


def test_a_blocked_prompt_never_uses_an_answer(kind: str):
    model = Model("fine")
    outcome = run(kind, policy(), model, (user("a bomb"),))
    assert outcome.reply is None
    assert outcome.blocked is outcome.admission.stopped
    assert outcome.blocked is not None
    if "speculative" not in kind:
        assert model.requests == []


def test_a_prompt_under_fallback_is_answered_by_the_policy(kind: str):
    outcome = run(kind, policy("fallback"), Model("fine"), (user("a bomb"),))
    assert outcome.admission.ending == "fallback"
    assert outcome.blocked is None


def test_a_blocked_answer_is_blocked(kind: str):
    outcome = run(kind, policy(), Model("a bomb"))
    assert outcome.blocked is outcome.choices[0].verdict
    assert outcome.choices[0].text == "Sorry."


def test_every_choice_is_judged(kind: str):
    outcome = run(kind, policy("fallback"), Model(["fine", "a bomb", "good"]))
    assert [c.ending for c in outcome.choices] == ["kept", "fallback", "kept"]


def test_an_observed_violation_passes_and_is_recorded(kind: str):
    outcome = run(kind, policy("observe"), Model("a bomb"))
    assert outcome.choices[0].ending == "kept"
    assert outcome.choices[0].verdict.violated


def test_the_model_is_asked_again_with_the_broken_rule(kind: str):
    model = Model("a bomb", "better")
    outcome = run(kind, policy("rewrite"), model)
    assert outcome.reply == ["better"]
    assert outcome.discarded == (["a bomb"],)
    said, asked = model.requests[1].feedback
    assert (said.role, said.content) == ("assistant", "a bomb")
    assert "- No bombs." in asked.content


def test_rewriting_is_bounded_and_ends_with_the_fallback(kind: str):
    model = Model("a bomb", "a bomb 2", "a bomb 3", "never asked")
    outcome = run(kind, policy("rewrite", max_rewrites=2), model)
    assert len(model.requests) == 3
    assert [(c.ending, c.text) for c in outcome.choices] == [("fallback", "Sorry.")]


def test_a_sentence_is_cut_out_of_an_answer(kind: str):
    outcome = run(kind, policy("redact"), Model("All is well. Take a bomb. Goodbye!"))
    assert [(c.ending, c.text) for c in outcome.choices] == [("redacted", "All is well. [removed] Goodbye!")]


def test_a_sentence_is_cut_out_of_a_prompt_before_it_is_sent(kind: str):
    model = Model("fine", "fine")
    outcome = run(kind, policy("redact", redaction="…"), model, (user("Hello there. I have a bomb."),))
    assert model.requests[-1].edits == {0: "Hello there. …"}
    assert outcome.reply == ["fine"]


def test_an_empty_answer_is_kept(kind: str):
    outcome = run(kind, policy(), Model(""))
    assert [(c.verdict, c.ending) for c in outcome.choices] == [(None, "kept")]


def test_an_error_of_the_model_reaches_the_caller(kind: str):
    with pytest.raises(IndexError):
        run(kind, policy(), Model())


def test_users_turns_in_a_row_are_all_judged(kind: str):
    assert run(kind, policy(), Model("fine"), (user("a bomb"), user("continue"))).blocked


def test_an_old_violation_does_not_block_for_ever(kind: str):
    talk = (user("a bomb"), bot("Sorry."), user("Hello"))
    assert run(kind, policy(), Model("fine"), talk).blocked is None


@pytest.mark.parametrize(
    ("roles", "new"),
    [
        ("su", [1]),
        ("suu", [1, 2]),
        ("suau", [3]),
        ("suaudu", [3, 5]),
        ("uat", [2]),
        ("uattu", [2, 3, 4]),
        ("ua", [0, 1]),
        ("uaua", [2, 3]),
        ("s", []),
    ],
)
def test_what_is_new(roles: str, new: list[int]):
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    assert new_turns([Message(names[role], "x") for role in roles]) == new


def test_exact_places_are_cut_exactly():
    made = Policy.from_dict({
        "name": "p", "rules": [{"id": "names", "text": "No rivals.", "action": "redact"}]
    })  # fmt: skip
    guard = Guard(made, checks={"names": DenylistCheck(["Acme", "Globex"])})
    outcome = drive(converse(made, TALK, read), guard.score, Model("Acme and Globex, not ours."))
    assert outcome.choices[0].text == "[removed] and [removed], not ours."


def test_a_speculative_call_is_cancelled_by_a_blocked_prompt():
    state = []

    async def call(request: Request) -> list[str]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            state.append("cancelled")
            raise
        return ["late"]

    async def judge(views):
        await asyncio.sleep(0.01)
        return Guard(policy(), KeywordRewardModel("bomb")).score(views)

    flow = admit(policy(), (user("a bomb"),), speculative=True)
    assert asyncio.run(adrive(flow, judge, call)).ending == "blocked"
    assert state == ["cancelled"]


def test_a_speculative_call_runs_beside_the_judgement():
    started = threading.Event()

    def judge(views):
        assert started.wait(5)
        return Guard(policy(), KeywordRewardModel("bomb")).score(views)

    def call(request: Request) -> list[str]:
        started.set()
        return ["fine"]

    assert drive(admit(policy(), TALK, speculative=True), judge, call).reply == ["fine"]


def test_a_blocked_prompt_does_not_wait_for_a_blocking_call():
    go, closed = threading.Event(), threading.Event()
    late = []

    def call(request: Request) -> list[str]:
        go.wait(10)
        return ["late"]

    def discard(reply: list[str]) -> None:
        late.append(reply)
        closed.set()

    began = time.monotonic()
    guard = Guard(policy(), KeywordRewardModel("bomb"))
    flow = admit(policy(), (user("a bomb"),), speculative=True)
    assert drive(flow, guard.score, call, discard).ending == "blocked"
    assert time.monotonic() - began < 5
    go.set()
    assert closed.wait(5)
    assert late == [["late"]]


def test_an_error_while_judging_cancels_the_call():
    cancelled = []

    async def call(request: Request) -> list[str]:
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.append(True)
        return []

    async def judge(views):
        await asyncio.sleep(0.01)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        asyncio.run(adrive(admit(policy(), TALK, speculative=True), judge, call))
    assert cancelled == [True]


@pytest.mark.parametrize(("again", "asked"), [(True, 2), (False, 1), (None, 1)])
def test_who_reads_a_reply_says_whether_its_parts_are_one_answer(again: bool | None, asked: int):
    made, model = policy("rewrite"), Model(["thought", "a bomb"], ["thought", "better"])
    guard = Guard(made, KeywordRewardModel("bomb"))
    drive(converse(made, TALK, read, again=again), guard.score, model)
    assert len(model.requests) == asked


def test_feedback_on_an_answer_with_half_a_surrogate_pair_can_be_sent():
    made = policy("rewrite")
    verdict = Guard(made, KeywordRewardModel("bomb")).check(bot("a bomb"))
    said, _ = feedback(made, bot("a bomb \ud800"), verdict)
    assert said.content.encode("utf-8") == b"a bomb ?"
