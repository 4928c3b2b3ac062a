import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrm_guard import Guard, Message, Policy
from csrm_guard.checks import DenylistCheck
from csrm_guard.drivers import apump, pump
from csrm_guard.stream import Ended, Gated, Key, Part, Passed, StreamGate
from csrm_guard.testing import KeywordRewardModel

TALK = (Message("user", "How?"),)
STAGES = ["prompt", "response", "tool_call"]
Word = tuple[int, str]  # choice, text


def policy(action: str = "block") -> Policy:
    rule = {"id": "bombs", "text": "No bombs.", "action": action, "stages": STAGES}
    return Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [rule]})


def gated(choice: int, text: str, channel: str = "content", *, last: bool = False) -> Gated[Word]:
    key: Key = (choice, channel, 0)  # type: ignore[assignment]
    ends = frozenset({choice}) if last else frozenset()
    return Gated((choice, text), (Part(key, text, "run"),) if text else (), frozenset({choice}), ends)


class Upstream:
    """Counts what was taken from it."""

    def __init__(self, *chunks: Gated[Word]) -> None:
        self.chunks, self.taken = chunks, 0

    def __iter__(self) -> Iterator[Gated[Word]]:
        for chunk in self.chunks:
            self.taken += 1
            yield chunk

    async def __aiter__(self) -> AsyncIterator[Gated[Word]]:
        for chunk in self:
            yield chunk


def said(out: list[Passed[Word] | Ended]) -> dict[int, str]:
    """Return what a consumer has seen, by choice."""
    found: dict[int, str] = {}
    for one in out:
        if isinstance(one, Passed) and one.chunk[0] >= 0:
            choice, text = one.chunk
            found[choice] = found.get(choice, "") + next(iter(one.texts.values()), text)
    return found


def ended(out: list[Passed[Word] | Ended]) -> dict[int, str]:
    return {one.choice: one.ending for one in out if isinstance(one, Ended)}


def run(upstream: Upstream, made: Policy, model: KeywordRewardModel | None = None, *, asynchronous=False, **options):
    guard = Guard(made, model or KeywordRewardModel("bomb"))
    gate: StreamGate[Word] = StreamGate(made, TALK, **options)
    if not asynchronous:
        return list(pump(gate, guard.score, upstream))

    async def judge(views):
        return guard.score(views)

    async def collect():
        return [one async for one in apump(gate, judge, upstream)]

    return asyncio.run(collect())


def words(text: str, choice: int = 0) -> list[Gated[Word]]:
    pieces = [gated(choice, word + " ") for word in text.split(" ")]
    return [*pieces, gated(choice, "", last=True)]


WORD = st.sampled_from(["a", "kettle", "is", "warm", "3.5", "bo", "mb"])
SENTENCE = st.builds(
    lambda body, bad, end: " ".join([*body, "bomb"] if bad else body) + end + " ",
    st.lists(WORD, min_size=1, max_size=6),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([".", "!", "?", "…", "\n"]),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[list[str]], list[Gated[Word]]]:
    """Draw choices made of sentences, cut anywhere and mixed anyhow."""
    choices = draw(st.lists(st.lists(SENTENCE, min_size=1, max_size=6), min_size=1, max_size=3))
    lanes = []
    for i, sentences in enumerate(choices):
        text = "".join(sentences)
        cuts = sorted(draw(st.sets(st.integers(1, len(text)), max_size=12)) | {0, len(text)})
        pieces = [gated(i, text[a:b]) for a, b in pairwise(cuts)]
        lanes.append([*pieces, gated(i, "", last=True)])
    mixed = []
    while any(lanes):
        mixed.append(draw(st.sampled_from([lane for lane in lanes if lane])).pop(0))
    return choices, mixed


@settings(max_examples=300, deadline=None)
@given(streams(), st.booleans())
def test_no_violating_character_leaks_and_nothing_else_is_lost(made, asynchronous: bool):
    choices, chunks = made
    upstream = Upstream(*chunks)
    out = run(upstream, policy(), choices=len(choices), asynchronous=asynchronous)
    seen, stopped = said(out), ended(out)
    for i, sentences in enumerate(choices):
        bad = [k for k, sentence in enumerate(sentences) if "bomb" in sentence]
        if bad:
            assert "".join(sentences[: bad[0]]).startswith(seen.get(i, ""))
            assert stopped[i] == "blocked"
        else:
            assert seen[i] == "".join(sentences)
            assert i not in stopped


@settings(max_examples=300, deadline=None)
@given(streams())
def test_under_redact_only_the_violating_sentences_are_missing(made):
    choices, chunks = made
    seen = said(run(Upstream(*chunks), policy("redact"), choices=len(choices)))
    for i, sentences in enumerate(choices):
        expected = "".join("[removed]" if "bomb" in s else s.strip() for s in sentences)
        assert "".join(seen[i].split()) == "".join(expected.split())


@settings(max_examples=100, deadline=None)
@given(streams())
def test_the_upstream_is_left_within_one_chunk_of_the_last_block(made):
    choices, chunks = made
    upstream = Upstream(*chunks)
    run(upstream, policy(), choices=len(choices))
    if all(any("bomb" in s for s in sentences) for sentences in choices):
        sealed = 0  # the chunk after which every choice is known to be bad
        for i, sentences in enumerate(choices):
            bad = next(k for k, s in enumerate(sentences) if "bomb" in s)
            size, limit = 0, len("".join(sentences[: bad + 1]))
            for n, chunk in enumerate(chunks):
                size += len(chunk.chunk[1]) if chunk.chunk[0] == i else 0
                if chunk.chunk[0] == i and (size >= limit or chunk.ends):
                    sealed = max(sealed, n)
                    break
        later = [n for n, c in enumerate(chunks) if n > sealed]
        assert upstream.taken <= (later[0] + 1 if later else len(chunks)) + len(choices)


def test_a_sentence_leaves_as_soon_as_it_has_ended():
    gate: StreamGate[Word] = StreamGate(policy(), TALK)
    guard = Guard(policy(), KeywordRewardModel("bomb"))
    left = []
    for chunk in words("One is here. Two")[:-1]:
        gate.push(chunk)
        while views := gate.due():
            gate.settle(guard.score(views))
        left.append(len(gate.ready()))
    assert left == [0, 0, 3, 0]


def test_a_long_sentence_is_judged_in_parts():
    out = run(Upstream(*words("word " * 100)), policy(), hold=50)
    assert said(out)[0].count("word") == 100


def test_chunks_leave_as_the_vendor_made_them():
    chunks = words("One is. Two is.")
    out = run(Upstream(*chunks), policy())
    assert [one.chunk for one in out if isinstance(one, Passed)] == [c.chunk for c in chunks]
    assert not any(one.texts or one.without for one in out if isinstance(one, Passed))


def test_the_last_chunk_is_withheld_from_a_blocked_choice():
    last = gated(0, "", last=True)
    out = run(Upstream(gated(0, "a bomb"), last), policy())
    assert said(out) == {}
    assert ended(out) == {0: "blocked"}


def test_a_fallback_ends_the_choice_with_the_policys_text():
    (end,) = run(Upstream(*words("a bomb. More")), policy("fallback"))
    assert (end.ending, end.text) == ("fallback", "Sorry.")


def test_the_other_choices_go_on():
    out = run(Upstream(gated(0, "a bomb. "), gated(1, "Fine. "), gated(1, "Yes", last=True)), policy(), choices=2)
    assert said(out) == {1: "Fine. Yes"}
    assert ended(out) == {0: "blocked"}


@pytest.mark.parametrize("channel", ["content", "refusal", "reasoning", "tool"])
def test_every_channel_is_judged(channel: str):
    out = run(Upstream(gated(0, "a bomb.", channel), gated(0, "", last=True)), policy())
    assert said(out) == {}
    assert ended(out) == {0: "blocked"}


def test_tool_arguments_leave_when_all_are_there():
    chunks = [gated(0, '{"x": ', "tool"), gated(0, '"fine. ok"}', "tool"), gated(0, "", last=True)]
    gate: StreamGate[Word] = StreamGate(policy(), TALK)
    guard = Guard(policy(), KeywordRewardModel("bomb"))
    left = []
    for chunk in chunks:
        gate.push(chunk)
        while views := gate.due():
            gate.settle(guard.score(views))
        gate.settle(())
        left.append(len(gate.ready()))
    assert left == [0, 0, 3]


def test_a_violation_of_the_whole_is_found_at_the_end():
    class Long(KeywordRewardModel):
        def score(self, requests):
            return [
                KeywordRewardModel("word" if len(r.messages[-1].content) > 1500 else "none").score([r])[0]
                for r in requests
            ]

    out = run(Upstream(*words("A word here. " * 150)), policy(), Long())
    assert ended(out) == {0: "blocked"}
    assert said(out)[0]


def test_usage_comes_last():
    usage: Gated[Word] = Gated((-1, "usage"))
    out = run(Upstream(*words("Fine."), usage), policy())
    assert out[-1] == Passed((-1, "usage"))


def test_a_stream_that_breaks_off_is_judged_to_its_end():
    assert ended(run(Upstream(gated(0, "a bomb")), policy())) == {0: "blocked"}
    assert said(run(Upstream(gated(0, "fine")), policy())) == {0: "fine"}


def test_places_that_a_check_found_are_cut_exactly():
    made = policy("redact")
    guard = Guard(made, checks={"bombs": DenylistCheck(["Acme"])})
    gate: StreamGate[Word] = StreamGate(made, TALK)
    out = list(pump(gate, guard.score, Upstream(*words("We like Acme here. And Acme there."))))
    assert said(out) == {0: "We like [removed] here. And [removed] there. "}


def test_in_mode_end_only_the_last_chunk_is_held():
    out = run(Upstream(*words("a bomb. More")), policy(), mode="end")
    assert said(out) == {0: "a bomb. More "}
    assert ended(out) == {0: "blocked"}


def test_in_mode_sampled_at_most_every_characters_and_a_chunk_leak():
    for place in range(0, 300, 7):
        text = "x" * place + " bomb " + "y" * 300
        chunks = [gated(0, text[i : i + 10]) for i in range(0, len(text), 10)]
        out = run(Upstream(*chunks), policy(), mode="sampled", every=50)
        assert ended(out) == {0: "blocked"}
        assert len(said(out)[0]) - text.index("bomb") <= 50 + 10


@pytest.mark.parametrize("options", [{"every": 0}, {"hold": 0}, {"choices": 0}])
def test_options_below_one_are_errors(options: dict[str, int]):
    with pytest.raises(ValueError, match="at least 1"):
        StreamGate(policy(), TALK, **options)  # type: ignore[arg-type]


def closing(text: str, channel: str) -> Gated[Word]:
    key: Key = (0, channel, 0)  # type: ignore[assignment]
    return Gated((0, text), (Part(key, text, "run"),), frozenset({0}), closes=frozenset({key}))


@pytest.mark.parametrize("channel", ["content", "tool"])
def test_a_part_that_is_complete_leaves_before_its_choice_ends(channel: str):
    guard = Guard(policy(), KeywordRewardModel("bomb"))
    gate: StreamGate[Word] = StreamGate(guard.policy, TALK)
    gate.push(closing("fine", channel))
    gate.settle(guard.score(gate.due()))
    assert said(gate.ready()) == {0: "fine"}
    assert not gate.due()


@pytest.mark.parametrize("mode", ["gated", "sampled", "end"])
@pytest.mark.parametrize("channel", ["content", "tool"])
def test_the_end_of_a_part_waits_for_its_judgement_in_every_mode(mode: str, channel: str):
    guard = Guard(policy(), KeywordRewardModel("bomb"))
    gate: StreamGate[Word] = StreamGate(guard.policy, TALK, mode=mode)  # type: ignore[arg-type]
    gate.push(closing("a bomb", channel))
    views = gate.due()
    gate.settle(guard.score(views))
    out = gate.ready()
    assert (said(out), ended(out)) == ({}, {0: "blocked"})


def test_a_later_tool_call_is_judged_with_the_ones_before_it():
    guard = Guard(policy(), KeywordRewardModel("bomb"))
    gate: StreamGate[Word] = StreamGate(guard.policy, TALK)
    gate.push(closing("one", "tool"))
    gate.settle(guard.score(gate.due()))
    key: Key = (0, "tool", 1)
    gate.push(Gated((0, "two"), (Part(key, "two", "run"),), frozenset({0}), closes=frozenset({key})))
    (view,) = gate.due()
    assert [call.arguments for call in view[-1].tool_calls] == ["one", "two"]


def test_a_choice_that_goes_on_after_its_end_is_judged_on():
    guard = Guard(policy(), KeywordRewardModel("bomb"))
    sent = [gated(0, "Fine. ", last=True), gated(0, "Good. "), gated(0, "A bomb. ")]
    out = list(pump(StreamGate(guard.policy, TALK), guard.score, sent))
    assert (said(out), ended(out)) == ({0: "Fine. Good. "}, {0: "blocked"})
