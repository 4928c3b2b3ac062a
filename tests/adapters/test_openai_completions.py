import asyncio

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from csrm_guard import Blocked, Guard, Policy
from csrm_guard.checks import pii_check
from csrm_guard.testing import ChatServer, KeywordRewardModel, Reply
from csrm_guard_adapters.openai import guard_client, verdicts_of


def policy(action: str = "block") -> Policy:
    rule = {"id": "bombs", "text": "No bombs.", "action": action}
    return Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [rule]})


def guard(action: str = "block") -> Guard:
    return Guard(policy(action), KeywordRewardModel("bomb"))


@pytest.fixture(params=["sync", "async", "speculative", "async speculative"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def create(kind: str, server: ChatServer, made: Guard, prompt="How?", *, on_block="raise", **kwargs):
    """Call completions.create, collecting a stream's chunks."""
    options = {"speculative": "speculative" in kind, "on_block": on_block}
    settings = {"api_key": "none", "base_url": server.url, "max_retries": 0}
    if "async" not in kind:
        with OpenAI(**settings) as client:
            found = guard_client(client, made, **options).completions.create(model="m", prompt=prompt, **kwargs)
            return list(found) if kwargs.get("stream") else found

    async def run():
        async with AsyncOpenAI(**settings) as client:
            found = await guard_client(client, made, **options).completions.create(model="m", prompt=prompt, **kwargs)
            return [chunk async for chunk in found] if kwargs.get("stream") else found

    return asyncio.run(run())


def text_of(chunks: list[Completion], choice: int = 0) -> str:
    return "".join(c.text for chunk in chunks for c in chunk.choices if c.index == choice)


def reasons(chunks: list[Completion]) -> dict[int, str]:
    return {c.index: c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason}


def test_an_allowed_completion_is_the_vendors_own(kind: str):
    with ChatServer("All is well.") as server:
        found = create(kind, server, guard())
        assert (type(found), found.choices[0].text) == (Completion, "All is well.")
        assert verdicts_of(found).endings == ("kept",)


@pytest.mark.parametrize(
    "sent",
    [{"prompt": "a bomb"}, {"prompt": ["a bomb", "fine"]}, {"prompt": "fine", "suffix": "a bomb"}],
    ids=["string", "list", "suffix"],
)
def test_every_prompt_is_judged(kind: str, sent: dict):
    with ChatServer("fine") as server, pytest.raises(Blocked):
        create(kind, server, guard(), **sent)


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]]], ids=["one", "several"])
def test_token_ids_are_reported_as_not_read(prompt):
    with ChatServer("fine") as server:
        found = create("sync", server, guard(), prompt)
        assert verdicts_of(found).prompt[0].coverage.unread == ("tokens",)
        assert server.requests[0]["prompt"] == prompt


def test_every_choice_is_judged(kind: str):
    with ChatServer(Reply(("one", "a bomb", "three"))) as server:
        found = create(kind, server, guard("fallback"), n=3)
        assert [(c.text, c.finish_reason) for c in found.choices] == [
            ("one", "stop"), ("Sorry.", "stop"), ("three", "stop")
        ]  # fmt: skip


def test_a_block_can_be_returned_as_an_empty_completion(kind: str):
    for prompt, said in (("a bomb", "fine"), ("How?", "a bomb")):
        with ChatServer(said) as server:
            found = create(kind, server, guard(), prompt, on_block="return")
            assert [(c.text, c.finish_reason) for c in found.choices] == [("", "content_filter")]


def test_the_model_is_asked_again():
    with ChatServer("a bomb", "better") as server:
        assert create("sync", server, guard("rewrite")).choices[0].text == "better"
        assert server.requests[1]["prompt"].startswith("How?\n\na bomb\n\nYour last answer breaks these rules")


def test_personal_data_is_cut_out_of_what_is_sent_and_of_what_comes_back():
    made = Guard(policy("redact"), checks={"bombs": pii_check("email")})
    with ChatServer(Reply(("I wrote to a@b.com now",))) as server:
        found = create("sync", server, made, ["Mail a@b.com", "tea"], suffix="from c@d.org")
        assert server.requests[0]["prompt"] == ["Mail [removed]", "tea"]
        assert server.requests[0]["suffix"] == "from [removed]"
        assert found.choices[0].text == "I wrote to [removed] now"
        chunks = create("sync", server, made, stream=True)
        assert text_of(chunks) == "I wrote to [removed] now"


def test_choices_of_a_stream_end_one_by_one(kind: str):
    with ChatServer(Reply(("Fine. Good.", "A bomb. More."))) as server:
        chunks = create(kind, server, guard(), ["a", "b"], stream=True)
    assert (text_of(chunks, 0), text_of(chunks, 1)) == ("Fine. Good.", "")
    assert reasons(chunks) == {0: "stop", 1: "content_filter"}


def test_a_fallback_ends_a_stream(kind: str):
    with ChatServer("A bomb. More.") as server:
        chunks = create(kind, server, guard("fallback"), stream=True)
        assert (text_of(chunks), reasons(chunks)) == ("Sorry.", {0: "stop"})


def test_raw_responses_are_judged():
    with ChatServer("a bomb") as server, OpenAI(api_key="none", base_url=server.url) as client, pytest.raises(Blocked):
        guard_client(client, guard()).with_raw_response.completions.create(model="m", prompt="How?")
