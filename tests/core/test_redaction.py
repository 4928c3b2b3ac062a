import pytest

from csrm_guard import Guard, Message, Policy, ToolCall
from csrm_guard.drivers import drive
from csrm_guard.redaction import cut, redacted
from csrm_guard.sentences import sentence_end, sentence_spans
from csrm_guard.testing import KeywordRewardModel

POLICY = Policy.from_dict({
    "name": "p",
    "rules": [{"id": "b", "text": "No bombs.", "action": "redact", "stages": ["prompt", "response", "tool_call"]}],
})  # fmt: skip


def redact(message: Message) -> str | None:
    guard = Guard(POLICY, KeywordRewardModel("bomb", "marker"))
    return drive(redacted(POLICY, (message,), guard.check([message])), guard.score, lambda request: None)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 3)], "- two three"),
        ([(4, 7), (0, 3)], "- - three"),
        ([(0, 5), (3, 7)], "- three"),
        ([(3, 8)], "one - three"),
        ([(2, 2)], "one two three"),
    ],
)
def test_spans_are_cut(spans: list[tuple[int, int]], expected: str):
    assert cut("one two three", spans, "-") == expected


def test_only_the_broken_sentences_are_cut():
    assert redact(Message("assistant", "Fine. A bomb! Good. Bomb?\nBye")) == "Fine. [removed] Good. [removed]\nBye"


def test_a_call_is_never_cut():
    message = Message("assistant", "A bomb. Fine.", (ToolCall("f", "bomb"),))
    assert redact(message) is None


def test_a_harmless_call_may_stay_beside_a_cut_text():
    assert redact(Message("assistant", "A bomb. Fine.", (ToolCall("f", "{}"),))) == "[removed] Fine."


def test_what_is_broken_only_as_a_whole_is_cut_as_a_whole():
    class Whole(KeywordRewardModel):
        def score(self, requests):
            long = [self if len(r.messages[-1].content) > 15 else KeywordRewardModel("nothing") for r in requests]
            return [KeywordRewardModel.score(m, [r])[0] for m, r in zip(long, requests, strict=True)]

    guard = Guard(POLICY, Whole("part"))
    message = Message("assistant", "One part. Two part.")
    found = drive(redacted(POLICY, (message,), guard.check([message])), guard.score, lambda request: None)
    assert found == "[removed]"


def test_a_marker_that_breaks_the_rule_helps_nobody():
    policy = POLICY.model_copy(update={"defaults": POLICY.defaults.model_copy(update={"redaction": "a bomb"})})
    guard = Guard(policy, KeywordRewardModel("bomb"))
    message = Message("assistant", "A bomb.")
    assert drive(redacted(policy, (message,), guard.check([message])), guard.score, lambda request: None) is None


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("It costs 3.50 today. Fine", ["It costs 3.50 today.", " Fine"]),
        ('He said "no." Then left.', ['He said "no."', " Then left."]),
        ("a\n\nb", ["a\n\n", "b"]),
        ("好。坏！", ["好。", "坏！"]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences_are_the_whole_text(text: str, sentences: list[str]):
    assert [text[a:b] for a, b in sentence_spans(text)] == sentences


@pytest.mark.parametrize(("text", "start", "end"), [("One. Two", 0, 4), ("One. Two", 4, None), ("One.", 0, None)])
def test_a_sentence_has_ended_when_something_follows(text: str, start: int, end: int | None):
    assert sentence_end(text, start) == end
