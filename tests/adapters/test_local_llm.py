"""A guarded client of OpenAI's against a language model that is none of ours.

`CSRM_SMOLLM` names a folder in transformers' format, such as SmolLM2-135M's; without it a tiny random Llama answers.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from openai import OpenAI

from csrm_guard import Guard, Policy, best_of_n
from csrm_guard.testing import KeywordRewardModel
from csrm_guard_adapters.openai import guard_client, verdicts_of
from tests.local_llm import LocalLLM
from tests.tiny import make_backbone

pytestmark = pytest.mark.slow

ASK = [{"role": "user", "content": "My kettle leaks at the spout. What can I do?"}]
CALL = {"model": "local", "messages": ASK, "max_tokens": 96}
FALLBACK = "Please ask at the desk."


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLLM]:
    named = os.environ.get("CSRM_SMOLLM")
    folder = Path(named) if named else make_backbone(tmp_path_factory.mktemp("llm") / "llama", "llama")
    with LocalLLM(folder) as served:
        yield served


@pytest.fixture(scope="module")
def client(llm: LocalLLM) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=llm.url, max_retries=0) as bare:
        yield bare


@pytest.fixture(scope="module")
def said(client: OpenAI) -> str:
    """What the model says, greedily, to a bare client."""
    return client.chat.completions.create(**CALL).choices[0].message.content


def blocking(word: str) -> Guard:
    rule = {"id": "word", "text": "Do not say the word.", "stages": ["response"]}
    policy = Policy.from_dict({"name": "p", "defaults": {"fallback": FALLBACK}, "rules": [rule]})
    return Guard(policy, KeywordRewardModel(word))


def test_an_answer_is_judged_by_the_shipped_model_and_comes_unchanged(client: OpenAI, said: str):
    found = guard_client(client, Guard("support-desk", shadow=True)).chat.completions.create(**CALL)
    verdicts = verdicts_of(found)
    assert found.choices[0].message.content == said
    assert len(verdicts.prompt) == len(verdicts.answer) == 1
    assert 0 < verdicts.answer[0].p_safe < 1
    assert not verdicts.answer[0].degraded


def test_a_stream_arrives_complete_and_in_order(client: OpenAI, said: str):
    guarded = guard_client(client, Guard("support-desk", shadow=True))
    chunks = list(guarded.chat.completions.create(**CALL, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stream_ends_before_the_sentence_that_breaks_a_rule_and_so_does_the_model(
    client: OpenAI, llm: LocalLLM, said: str
):
    word = max(said[: len(said) // 2].split(), key=len)
    guarded = guard_client(client, blocking(word))
    longer = {**CALL, "max_tokens": 400}
    chunks = list(guarded.chat.completions.create(**longer, stream=True))
    seen = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert word.lower() not in seen.lower()
    assert said.startswith(seen)
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert chunks[-2].choices[0].delta.refusal == FALLBACK
    llm.wait()
    assert llm.tokens[-1] < 400


def test_the_best_of_several_answers_is_one_of_them(client: OpenAI):
    guard = Guard("support-desk")
    bare = client.chat.completions.create(**CALL, n=4, temperature=1.0, seed=3)
    texts = iter([choice.message.content for choice in bare.choices])
    ranking = best_of_n(guard, ASK, lambda: next(texts), n=4)
    rewards = [candidate.verdict.reward for candidate in ranking.candidates]
    assert len(rewards) == 4
    assert rewards == sorted(rewards, reverse=True)
    guarded = guard_client(client, Guard("support-desk", shadow=True))
    again = guarded.chat.completions.create(**CALL, n=4, temperature=1.0, seed=3)
    assert sorted(v.reward for v in verdicts_of(again).answer) == pytest.approx(sorted(rewards), abs=1e-3)
