"""What the shipped model computes again when it judges a growing answer."""

from collections.abc import Sequence

import pytest

from csrm_guard import Guard, Message, OnnxRewardModel, Policy
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.drivers import pump
from csrm_guard.stream import Gated, Part, StreamGate

POLICY = Policy.from_dict({"name": "p", "rules": [{"id": "polite", "text": "Do not be rude to a customer."}]})
SYSTEM = Message("system", "You help customers of a shop that sells kettles, pots and pans. Be brief and friendly.")
ASKED = Message("user", "My kettle has begun to leak at the spout. What can I do about it, and whom may I call?")
SENTENCES = [f"Step {n}: empty the kettle, let it dry, and look at the seal below its lid." for n in range(1, 25)]


class Counted:
    """Counts the judgements that a guard is asked for."""

    def __init__(self, guard: Guard) -> None:
        self.guard, self.judgements = guard, 0

    def __call__(self, views: Sequence[tuple[Message, ...]]):
        self.judgements += len(views)
        return self.guard.score(views)


@pytest.fixture
def model() -> OnnxRewardModel:
    return OnnxRewardModel.load(DEFAULT_ARTIFACT)


def stream(model: OnnxRewardModel, sentences: Sequence[str]) -> Counted:
    judge = Counted(Guard(POLICY, model, shadow=True))
    gate: StreamGate[str] = StreamGate(judge.guard.policy, (SYSTEM, ASKED))
    key = (0, "content", 0)
    chunks = [Gated(text, (Part(key, f"{text} "),), frozenset({0})) for text in sentences]  # type: ignore[arg-type]
    assert list(pump(gate, judge, chunks))
    return judge


def test_the_conversation_is_computed_twice_however_many_sentences_are_judged(model):
    judge = stream(model, SENTENCES[:6])
    assert judge.judgements >= 6
    assert model.prefixes.hits == judge.judgements - 2


def test_a_second_answer_to_the_same_conversation_computes_none_of_it(model):
    stream(model, SENTENCES[:6])
    before = model.prefixes.hits
    judge = stream(model, SENTENCES[6:12])
    assert model.prefixes.hits - before == judge.judgements


def test_beyond_one_window_what_was_said_before_is_kept_for_several_sentences(model):
    judge = stream(model, SENTENCES)
    assert judge.judgements >= len(SENTENCES)
    assert model.prefixes.hits > judge.judgements / 2
