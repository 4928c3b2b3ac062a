"""Through a guard that allows all, a client behaves as the bare one: the behaviours of openai-python's own tests."""

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from pydantic import BaseModel

from csrm_guard import Guard, Policy
from csrm_guard.testing import ChatServer, KeywordRewardModel, Reply
from csrm_guard_adapters.openai import guard_client

ASK = [{"role": "user", "content": "How?"}]
CHAT = {"model": "m", "messages": ASK}
RESPONSE = {"model": "m", "input": "How?"}
PROMPT = {"model": "m", "prompt": "How?"}
STAGES = ["prompt", "response", "tool_call", "tool_result"]
ALLOW_ALL = Guard(
    Policy.from_dict({"name": "p", "rules": [{"id": "r", "text": "No bombs.", "stages": STAGES}]}), KeywordRewardModel()
)


class City(BaseModel):
    city: str


class ListFiles(BaseModel):
    path: str


TOOL = openai.pydantic_function_tool(ListFiles, name="list_files")


def plain(found: Any) -> Any:
    """Return what was found as something that can be compared: types, and what they hold."""
    if isinstance(found, BaseModel):
        return type(found).__name__, found.model_dump(warnings=False)
    return [plain(one) for one in found] if isinstance(found, list | tuple) else found


def failed(exc: Exception) -> tuple[Any, ...]:
    seen = (type(exc), str(exc), getattr(exc, "status_code", None), getattr(exc, "body", None))
    return *seen, type(exc.__cause__), plain(getattr(exc, "completion", None))


def run(client: OpenAI, path: str, kwargs: dict[str, Any]) -> list[Any]:
    """Return what a call gives: an object, a stream's events, a helper's events and its end; or its exception."""
    seen: list[Any] = []
    try:
        found = functools.reduce(getattr, path.split("."), client)(**kwargs)
        if path.endswith(".stream"):
            with found as stream:
                for event in stream:
                    seen.append(plain(event))
                final = getattr(stream, "get_final_completion", None) or stream.get_final_response
                return [*seen, plain(final())]
        if kwargs.get("stream"):
            seen += [type(found), found.response.status_code]
            for event in found:
                seen.append(plain(event))
            return seen
        return [plain(found)]
    except Exception as exc:
        return [*seen, failed(exc)]


async def arun(client: AsyncOpenAI, path: str, kwargs: dict[str, Any]) -> list[Any]:
    seen: list[Any] = []
    try:
        found = functools.reduce(getattr, path.split("."), client)(**kwargs)
        if path.endswith(".stream"):
            async with found as stream:
                async for event in stream:
                    seen.append(plain(event))
                final = getattr(stream, "get_final_completion", None) or stream.get_final_response
                return [*seen, plain(await final())]
        found = await found
        if kwargs.get("stream"):
            seen += [type(found), found.response.status_code]
            async for event in found:
                seen.append(plain(event))
            return seen
        return [plain(found)]
    except Exception as exc:
        return [*seen, failed(exc)]


def outcome(way: str, *, guarded: bool, replies: tuple[Reply, ...], path: str, kwargs: dict[str, Any]) -> Any:
    wrap: Callable[[Any], Any] = (
        (lambda client: guard_client(client, ALLOW_ALL)) if guarded else (lambda client: client)
    )
    kwargs = {**kwargs, "messages": list(kwargs["messages"])} if "messages" in kwargs else dict(kwargs)
    with ChatServer(*replies) as server:
        settings: dict[str, Any] = {"api_key": "none", "base_url": server.url, "max_retries": 2}
        if way == "sync":
            with OpenAI(**settings) as client:
                return run(wrap(client), path, kwargs), server.requests

        async def main() -> Any:
            async with AsyncOpenAI(**settings) as client:
                return await arun(wrap(client), path, kwargs), server.requests

        return asyncio.run(main())


@pytest.fixture(params=["sync", "async"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


def same(way: str, path: str, kwargs: dict[str, Any], *replies: Reply, interleaved: bool = False) -> list[Any]:
    """Assert that a call gives the same and sends the same with and without the guard; return what it gives."""
    there, here = (
        outcome(way, guarded=guarded, replies=replies, path=path, kwargs=kwargs) for guarded in (False, True)
    )
    if interleaved:
        # A helper's events hold all that came before them, of any choice: its end is what can be compared.
        shown = (lambda seen: seen[-1:]) if path.endswith(".stream") else by_choice
        there, here = ((shown(seen), sent) for seen, sent in (there, here))
    assert here == there
    return list(there[0])


def by_choice(seen: list[Any]) -> list[Any]:
    return sorted(seen[2:], key=lambda event: [choice["index"] for choice in event[1]["choices"]] or [99])


def sse(*events: object, done: bool = True) -> Reply:
    lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events]
    return Reply(body="".join(lines) + ("data: [DONE]\n\n" if done else ""))


def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return {**head, "choices": list(choices), **more}


def piece(content: str | None = None, index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    said = delta if content is None else {"content": content, **delta}
    return {"index": index, "delta": said, "finish_reason": finish}


def completion(message: dict[str, Any], finish: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    head = {"id": "chatcmpl-test", "object": "chat.completion", "created": 0, "model": "m"}
    usage = {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
    return Reply(body=json.dumps({**head, "choices": [choice], "usage": usage}))


LONG = Reply(
    ("All is well. Nothing to see.",), tool_calls=(("list_files", '{"path": "."}'), ("list_files", '{"path": "/"}'))
)
FORMAT = {"response_format": City}
STREAM = {"stream": True}
USAGE = {**STREAM, "stream_options": {"include_usage": True}}

# Of several choices each arrives in order; among each other they leave as they are judged.
INTERLEAVED = {"chat stream, usage", "completions stream", "helper, several choices", "choices out of order"}
CALLS = {
    "chat": ("chat.completions.create", CHAT, Reply(("fine",))),
    "chat, several choices": ("chat.completions.create", {**CHAT, "n": 2}, Reply(("one", "two"))),
    "chat, tools": ("chat.completions.create", CHAT, LONG),
    "chat, refusal and reasoning": ("chat.completions.create", CHAT, Reply(("",), refusal="No.", reasoning="Hm.")),
    "chat, no messages": ("chat.completions.create", {"model": "m", "messages": []}, Reply(("fine",))),
    "chat, an empty message": (
        "chat.completions.create", {"model": "m", "messages": [{"role": "user", "content": ""}]}, Reply(("fine",))
    ),
    "chat, nothing said": ("chat.completions.create", CHAT, completion({"content": None})),
    "chat stream": ("chat.completions.create", {**CHAT, **STREAM}, LONG),
    "chat stream, usage": ("chat.completions.create", {**CHAT, **USAGE}, Reply(("one. two.", "three")),),
    "chat stream, refusal and reasoning": (
        "chat.completions.create", {**CHAT, **STREAM}, Reply(("",), refusal="No.", reasoning="Hm.")
    ),
    "parse": ("chat.completions.parse", {**CHAT, **FORMAT}, Reply(('{"city": "Rome"}',))),
    "parse, several choices": (
        "chat.completions.parse", {**CHAT, **FORMAT, "n": 2}, Reply(('{"city": "Rome"}', '{"city": "Oslo"}'))
    ),
    "parse, refusal": ("chat.completions.parse", {**CHAT, **FORMAT}, Reply(("",), refusal="No.")),
    "parse, tools": ("chat.completions.parse", {**CHAT, "tools": [TOOL]}, LONG),
    "parse, too long": (
        "chat.completions.parse", {**CHAT, **FORMAT}, completion({"content": '{"city'}, "length")
    ),
    "parse, filtered": ("chat.completions.parse", {**CHAT, **FORMAT}, completion({"content": None}, "content_filter")),
    "parse, not what was asked for": ("chat.completions.parse", {**CHAT, **FORMAT}, Reply(('{"town": 1}',))),
    "helper": ("chat.completions.stream", CHAT, LONG),
    "helper, parsed": ("chat.completions.stream", {**CHAT, **FORMAT}, Reply(('{"city": "Rome"}',))),
    "helper, several choices": (
        "chat.completions.stream", {**CHAT, **FORMAT, "n": 2}, Reply(('{"city": "Rome"}', '{"city": "Oslo"}'))
    ),
    "helper, refusal": ("chat.completions.stream", {**CHAT, **FORMAT}, Reply(("",), refusal="No.")),
    "helper, tools": ("chat.completions.stream", {**CHAT, "tools": [TOOL]}, LONG),
    "helper, too long": (
        "chat.completions.stream", {**CHAT, **FORMAT},
        sse(chunk(piece('{"city', role="assistant")), chunk(piece(finish="length"))),
    ),
    "helper, filtered": (
        "chat.completions.stream", {**CHAT, **FORMAT},
        sse(chunk(piece('{"city', role="assistant")), chunk(piece(finish="content_filter"))),
    ),
    "choices out of order": (
        "chat.completions.create", {**CHAT, **STREAM},
        sse(
            chunk(piece("one", 1, role="assistant")), chunk(piece("zero", 0, role="assistant")),
            chunk(piece(" more", 1)), chunk(piece(index=0, finish="stop")), chunk(piece(index=1, finish="stop")),
        ),
    ),
    "a tool's name and arguments in one chunk": (
        "chat.completions.stream", {**CHAT, "tools": [TOOL]},
        sse(
            chunk(piece(role="assistant", tool_calls=[
                {"index": 0, "id": "c", "type": "function", "function": {"name": "list_files"}},
                {"index": 0, "function": {"arguments": '{"path"'}},
            ])),
            chunk(piece(tool_calls=[
                {"index": 0, "function": {"arguments": ": "}}, {"index": 0, "function": {"arguments": '"."}'}}
            ])),
            chunk(piece(finish="tool_calls")),
        ),
    ),
    "an unknown field": (
        "chat.completions.create", {**CHAT, **STREAM},
        sse(chunk(piece("a. "), news={"x": 1}), chunk(piece("b", finish="stop")), chunk(moderation=None)),
    ),
    "nothing but [DONE]": ("chat.completions.create", {**CHAT, **STREAM}, sse()),
    "a stream without an end": (
        "chat.completions.create", {**CHAT, **STREAM}, sse(chunk(piece("One. Two")), done=False)
    ),
    "an error in a stream": (
        "chat.completions.create", {**CHAT, **STREAM}, sse(chunk(piece("One. ")), {"error": {"message": "overloaded"}})
    ),
    "no JSON in a stream": ("chat.completions.create", {**CHAT, **STREAM}, sse(chunk(piece("One. ")), "{nonsense")),
    "responses": ("responses.create", RESPONSE, LONG),
    "responses stream": ("responses.create", {**RESPONSE, **STREAM}, LONG),
    "responses stream, all kinds": (
        "responses.create", {**RESPONSE, **STREAM}, Reply(("a. b.", "c"), refusal="No.", reasoning="Hm. Well.")
    ),
    "responses, no input": ("responses.create", {"model": "m", "input": []}, Reply(("fine",))),
    "responses parse": ("responses.parse", {**RESPONSE, "text_format": City}, Reply(('{"city": "Rome"}',))),
    "responses parse, not what was asked for": (
        "responses.parse", {**RESPONSE, "text_format": City}, Reply(('{"town": 1}',))
    ),
    "responses helper": ("responses.stream", {**RESPONSE, "text_format": City}, Reply(('{"city": "Rome"}',))),
    "responses helper, tools": (
        "responses.stream", {**RESPONSE, "tools": [TOOL]}, LONG
    ),
    "responses without output": ("responses.create", RESPONSE, Reply(body='{"id": "r", "object": "response"}')),
    "responses, output null": (
        "responses.create", RESPONSE, Reply(body='{"id": "r", "object": "response", "output": null}')
    ),
    "responses stream, output null at the end": (
        "responses.create", {**RESPONSE, **STREAM},
        sse(
            {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "output": []}},
            {"type": "response.completed", "sequence_number": 1, "response": {"id": "r", "output": None}},
        ),
    ),
    "responses stream, failed": (
        "responses.create", {**RESPONSE, **STREAM},
        sse(
            {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "output": []}},
            {"type": "response.failed", "sequence_number": 1, "response": {
                "id": "r", "output": [], "status": "failed", "error": {"code": "server_error", "message": "Sorry."}
            }},
        ),
    ),
    "responses stream, an event of no known type": (
        "responses.create", {**RESPONSE, **STREAM},
        sse(
            {"type": "response.created", "sequence_number": 0, "response": {"id": "r", "output": []}},
            {"type": "response.news", "sequence_number": 1, "headline": "Fine."},
            {"type": "response.completed", "sequence_number": 2, "response": {"id": "r", "output": []}},
        ),
    ),
    "completions": ("completions.create", {**PROMPT, "n": 2}, Reply(("one", "two"))),
    "completions stream": ("completions.create", {**PROMPT, **STREAM}, Reply(("one. two.", "three"))),
    "a missing argument": ("chat.completions.create", {"model": "m"}, Reply()),
    "an argument that is not known": ("chat.completions.create", {**CHAT, "nonsense": 1}, Reply()),
    "an option for one call": (
        "chat.completions.create", {**CHAT, "timeout": 5, "extra_body": {"top_k": 3}}, Reply(("fine",))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_what_the_bare_client_gives(way: str, name: str):
    path, kwargs, reply = CALLS[name]
    same(way, path, kwargs, reply, interleaved=name in INTERLEAVED)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("path", ["chat.completions.create", "responses.create", "completions.create"])
def test_an_error_is_the_vendors(way: str, path: str, status: int, error: type):
    kwargs = {"chat.completions.create": CHAT, "responses.create": RESPONSE, "completions.create": PROMPT}[path]
    quick = Reply(status=status, headers=(("retry-after-ms", "1"),))
    assert same(way, path, kwargs, quick)[-1][0] is error


@pytest.mark.parametrize("stream", [False, True])
def test_the_client_tries_again_as_often(way: str, stream: bool):
    quick = Reply(status=503, headers=(("retry-after-ms", "1"),))
    same(way, "chat.completions.create", {**CHAT, "stream": stream}, quick, quick, Reply(("fine",)))


def test_a_server_that_is_slow_is_a_timeout(way: str):
    slow, kwargs = Reply(("fine",), delay=0.3), {**CHAT, "timeout": 0.05}
    # Whether a request has connected, and arrives, before it is given up is the machine's affair.
    there, here = (
        outcome(way, guarded=guarded, replies=(slow,), path="chat.completions.create", kwargs=kwargs)[0][-1]
        for guarded in (False, True)
    )
    assert here[:4] == there[:4]
    assert here[0] is openai.APITimeoutError


def test_a_connection_that_breaks_off_ends_a_stream_as_it_did(way: str):
    same(way, "chat.completions.create", {**CHAT, **STREAM}, Reply(("Fine now. Good.",), broken_after=4))


def test_a_server_that_is_not_there_is_a_connection_error():
    with OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1", max_retries=0) as client:
        create = guard_client(client, ALLOW_ALL).chat.completions.create
        with pytest.raises(openai.APIConnectionError):
            create(**CHAT)


def test_options_are_kept_and_changed_as_the_vendor_does():
    with ChatServer("fine") as server, OpenAI(api_key="none", base_url=server.url, organization="o") as client:
        guarded = guard_client(client, ALLOW_ALL).with_options(timeout=3, max_retries=7, default_headers={"x": "y"})
        bare = client.with_options(timeout=3, max_retries=7, default_headers={"x": "y"})
        for name in ("timeout", "max_retries", "base_url", "api_key", "organization"):
            assert getattr(guarded, name) == getattr(bare, name)
        assert guarded.default_headers["x"] == "y"


def test_a_raw_response_has_its_headers_status_and_body():
    with ChatServer("fine") as server, OpenAI(api_key="none", base_url=server.url) as client:
        seen = []
        for one in (client, guard_client(client, ALLOW_ALL)):
            raw = one.chat.completions.with_raw_response.create(**CHAT)
            said = raw.parse().choices[0].message.content
            seen.append((type(raw), raw.status_code, raw.headers["content-type"], raw.retries_taken, raw.text, said))
        assert seen[0] == seen[1]


def test_a_streaming_response_has_its_body():
    with ChatServer("fine") as server, OpenAI(api_key="none", base_url=server.url) as client:
        seen = []
        for one in (client, guard_client(client, ALLOW_ALL)):
            with one.chat.completions.with_streaming_response.create(**CHAT) as found:
                seen.append((type(found), found.status_code, found.json(), plain(found.parse())))
        assert seen[0] == seen[1]


def test_a_stream_that_is_left_early_is_closed():
    with ChatServer(Reply(("Fine. " * 400,), delay=0.001)) as server:
        with OpenAI(api_key="none", base_url=server.url) as client:
            with guard_client(client, ALLOW_ALL).chat.completions.create(**CHAT, stream=True) as stream:
                next(iter(stream))
            assert stream.response.is_closed
        assert server.streamed[0] < 400


def test_what_does_not_generate_text_passes():
    with ChatServer() as server, OpenAI(api_key="none", base_url=server.url) as client:
        guarded = guard_client(client, ALLOW_ALL)
        for name in ("embeddings", "files", "models", "moderations", "vector_stores", "batches", "fine_tuning"):
            assert getattr(guarded, name) is getattr(client, name)


def test_a_client_of_azure_is_guarded_as_any():
    with ChatServer("fine") as server:
        settings = {"api_key": "none", "azure_endpoint": server.url, "api_version": "2025-04-01-preview"}
        with AzureOpenAI(**settings) as client:
            guarded = guard_client(client, ALLOW_ALL)
            assert isinstance(guarded, AzureOpenAI)
            assert guarded.chat.completions.create(**CHAT).choices[0].message.content == "fine"
            assert guarded.responses.create(**RESPONSE).output_text == "fine"
            assert guarded.completions.create(**PROMPT).choices[0].text == "fine"
