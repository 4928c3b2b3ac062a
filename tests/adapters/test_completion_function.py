import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI, Stream
from openai.types.chat import ChatCompletion

from csrm_guard import Blocked, Guard, Policy
from csrm_guard.testing import ChatServer, KeywordRewardModel
from csrm_guard_adapters.litellm import guard_completion, verdicts_of

ASK = [{"role": "user", "content": "How?"}]
BAD = [{"role": "user", "content": "a bomb"}]


def guard(action: str = "block") -> Guard:
    rule = {"id": "bombs", "text": "No bombs.", "action": action}
    made = Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [rule]})
    return Guard(made, KeywordRewardModel("bomb"))


def test_any_function_of_that_shape_is_guarded():
    with ChatServer("a bomb") as server, OpenAI(api_key="none", base_url=server.url) as client:

        def complete(model: str, messages: list[Any], **options: Any) -> Any:
            """Ask a model."""
            return client.chat.completions.create(model=model, messages=messages, **options)

        guarded = guard_completion(complete, guard("fallback"))
        found = guarded("m", ASK)
        assert (type(found), found.choices[0].message.content) == (ChatCompletion, "Sorry.")
        assert not verdicts_of(found).allowed
        stream = guarded("m", messages=ASK, stream=True)
        assert type(stream) is Stream
        assert "bomb" not in repr(list(stream))
        assert guarded("m", BAD).choices[0].message.content == "Sorry."
        assert len(server.requests) == 2
        assert guarded.__doc__ == "Ask a model."


def test_a_coroutine_function_is_guarded():
    async def run(server: ChatServer) -> None:
        async with AsyncOpenAI(api_key="none", base_url=server.url) as client:

            async def complete(model: str, messages: list[Any]) -> Any:
                return await client.chat.completions.create(model=model, messages=messages)

            await guard_completion(complete, guard())("m", ASK)

    with ChatServer("a bomb") as server, pytest.raises(Blocked):
        asyncio.run(run(server))


def test_too_many_arguments_are_refused():
    def complete(model: str, messages: list[Any]) -> Any:
        pytest.fail("called")

    with pytest.raises(TypeError, match="takes 2 positional arguments, 3 were given"):
        guard_completion(complete, guard())("m", ASK, 1)
