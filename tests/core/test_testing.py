import json
import socket
import urllib.request
from http.client import IncompleteRead

import pytest

from csrm_guard import Message, RewardModel, Rule, ScoringError, ScoringRequest, ToolCall
from csrm_guard.testing import ChatServer, KeywordRewardModel, Reply, ScriptedRewardModel

RULES = (Rule(id="a", text="x"), Rule(id="b", text="x"))


def asked(*messages):
    return [ScoringRequest(messages, RULES)]


@pytest.mark.parametrize("model", [KeywordRewardModel(), ScriptedRewardModel([])], ids=["keyword", "scripted"])
def test_the_fakes_are_reward_models(model):
    assert isinstance(model, RewardModel)


@pytest.mark.parametrize(
    ("message", "q"),
    [
        (Message("user", "A BOMB"), 0.99),
        (Message("user", "bread"), 0.01),
        (Message("assistant", "", (ToolCall("f", "a bomb"),)), 0.99),
    ],
    ids=["keyword", "other", "tool call"],
)
def test_a_keyword_violates_every_rule(message, q):
    (reading,) = KeywordRewardModel("bomb").score(asked(message))
    assert reading.q.tolist() == [[q, q]]


def test_a_keyword_in_the_context_violates_nothing():
    (reading,) = KeywordRewardModel("bomb").score(asked(Message("user", "a bomb"), Message("user", "bread")))
    assert reading.q.max() == 0.01


def test_a_threshold_of_the_keyword_model_parts_its_answers():
    model = KeywordRewardModel("bomb", violated=0.8, kept=0.2)
    assert 0.2 < model.threshold_at(0.01) < 0.8


def test_a_script_is_followed_in_order_and_recorded():
    model = ScriptedRewardModel([0.2, {"b": 0.9}])
    readings = [model.score(asked(Message("user", text)))[0].q.tolist() for text in ("one", "two")]
    assert readings == [[[0.2, 0.2]], [[0.0, 0.9]]]
    assert [r.messages[0].content for r in model.requests] == ["one", "two"]


def test_a_script_raises_its_exceptions():
    with pytest.raises(OSError, match="gone"):
        ScriptedRewardModel([OSError("gone")]).score(asked(Message("user", "x")))


def test_a_script_that_is_over_says_so():
    with pytest.raises(ScoringError, match="no answer left"):
        ScriptedRewardModel([]).score(asked(Message("user", "x")))


def test_a_chat_server_may_answer_by_what_it_is_asked():
    with ChatServer(lambda body: Reply((body["messages"][-1]["content"].upper(),))) as server:
        with urllib.request.urlopen(asking(server)) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"] == "HELLO"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "reply",
    [Reply(("hello there",), reset=True), Reply(("hello there",), broken_after=1, reset=True)],
    ids=["before", "amid"],
)
def test_a_reset_connection_is_an_error_to_its_reader(reply: Reply, stream: bool):
    with ChatServer(reply) as server, pytest.raises(OSError, match="reset"):
        urllib.request.urlopen(asking(server, stream)).read()


def test_a_whole_answer_may_break_off():
    with (
        ChatServer(Reply(("hello there",), broken_after=20)) as server,
        pytest.raises(IncompleteRead) as caught,
        urllib.request.urlopen(asking(server)) as answer,
    ):
        answer.read()
    assert len(caught.value.partial) == 20


def asking(server: ChatServer, stream: bool = False) -> urllib.request.Request:
    body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    return urllib.request.Request(f"{server.url}/chat/completions", json.dumps(body).encode())


def test_a_request_that_is_given_up_half_way_is_counted_and_uses_no_reply():
    with ChatServer("first") as server:
        host = server.url.split("/")[2]
        with socket.create_connection((host.split(":")[0], int(host.split(":")[1]))) as half:
            half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n")
            half.shutdown(socket.SHUT_WR)
            assert half.recv(1) == b""
        assert (server.requests, server.aborted) == ([], 1)
