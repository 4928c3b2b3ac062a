"""Proposals of p+ and p-: looked up in the authored items, or asked of a server over HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csrm_guard.errors import RowError
from csrm_guard.messages import Message
from csrm_guard_train.data import Authored
from csrm_guard_train.proposer import (
    AuthoredProposer,
    ChatProposer,
    ProposalError,
    app,
    proposal_group,
    propose_file,
    read_proposals,
)

openai = pytest.importorskip("openai")

GOOD = {
    "violated": "Never name a price in chat.",
    "kept": "Never name a price without the currency.",
    "paraphrases": ["Prices must not be stated in chat."],
    "reason": "It says 40 euros.",
}
SAID = (Message("user", "How much?"), Message("assistant", "It is 40 euros."))


class Server(ThreadingHTTPServer):
    """Answers chat completions by a script: a dict or text is an answer, a number an HTTP error."""

    script: list[object]
    asked: list[dict]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked = [], []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        step = self.server.script.pop(0)
        status = step if isinstance(step, int) else 200
        text = step if isinstance(step, str) else json.dumps(step)
        message = {"role": "assistant", "content": text}
        found = {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"],
                 "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
        reply = json.dumps(found if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def proposer(server: Server) -> Iterator[ChatProposer]:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=2) as client:
        yield ChatProposer(client, "scripted")


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_row(key: str) -> dict:
    return {"id": key, "messages": [{"role": m.role, "content": m.content} for m in SAID]}


def test_an_answer_becomes_a_proposal_that_says_where_it_comes_from(server: Server, proposer: ChatProposer):
    server.script = [GOOD]
    found = proposer.propose("c1", SAID)
    assert (found.violated, found.kept) == (GOOD["violated"], GOOD["kept"])
    assert found.origin == "proposed/scripted/c1"


def test_the_model_is_told_which_message_is_judged(server: Server, proposer: ChatProposer):
    server.script = [GOOD]
    proposer.propose("c1", SAID)
    assert "(judged) assistant: It is 40 euros." in server.asked[0]["messages"][-1]["content"]


def test_json_in_a_code_fence_is_read(server: Server, proposer: ChatProposer):
    server.script = [f"Here you are:\n```json\n{json.dumps(GOOD)}\n```"]
    assert proposer.propose("c1", SAID).reason == GOOD["reason"]


def test_a_broken_answer_is_sent_back_with_what_is_wrong(server: Server, proposer: ChatProposer):
    server.script = [{**GOOD, "kept": ""}, GOOD]
    assert proposer.propose("c1", SAID).kept == GOOD["kept"]
    assert "kept" in server.asked[1]["messages"][-1]["content"]


def test_a_second_broken_answer_is_an_error_that_names_the_conversation(server: Server, proposer: ChatProposer):
    server.script = ["sorry", {**GOOD, "extra": 1}]
    with pytest.raises(ProposalError, match=r"c1: scripted gave no usable JSON twice: extra"):
        proposer.propose("c1", SAID)


def test_a_failing_server_is_asked_again(server: Server, proposer: ChatProposer):
    server.script = [500, GOOD]
    assert proposer.propose("c1", SAID).kept == GOOD["kept"]


def test_a_refusing_server_is_an_error_that_names_the_conversation(server: Server, proposer: ChatProposer):
    server.script = [401]
    with pytest.raises(ProposalError, match="c1: scripted: "):
        proposer.propose("c1", SAID)


def test_a_second_run_asks_only_for_what_is_missing(server: Server, proposer: ChatProposer, tmp_path: Path):
    source, out = write(tmp_path / "in", make_row("a"), make_row("b")), tmp_path / "out"
    server.script = [GOOD, 401]
    assert propose_file(source, out, proposer)[0] == 1
    server.script = [GOOD]
    assert propose_file(source, out, proposer) == (1, [])
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b"]


def test_a_row_without_an_id_is_named(proposer: ChatProposer, tmp_path: Path):
    with pytest.raises(RowError, match=r"in:1: a row needs an `id`"):
        propose_file(write(tmp_path / "in", {"messages": ["hi"]}), tmp_path / "out", proposer)


def test_the_command_reports_what_failed(server: Server, tmp_path: Path):
    server.script = [GOOD, 401]
    source = write(tmp_path / "in", make_row("a"), make_row("b"))
    url = f"http://127.0.0.1:{server.server_port}/v1"
    result = CliRunner().invoke(
        app, [str(source), str(tmp_path / "out"), "--model", "m", "--base-url", url, "--retries", "0"]
    )
    assert result.exit_code == 1
    assert "1 proposals added" in result.output
    assert "b: m: " in result.output


def test_the_authored_proposals_are_the_items_own_wordings(authored: Authored):
    item = next(item for item in authored.items if item.strict)
    found = AuthoredProposer(authored)
    assert found.propose("x", item.violating).kept == item.lenient
    assert found.propose("x", item.compliant).violated == item.strict


def test_a_conversation_that_nobody_wrote_about_is_named(authored: Authored):
    with pytest.raises(ProposalError, match="x7: no authored item"):
        AuthoredProposer(authored).propose("x7", SAID)


def test_a_proposal_is_training_data_whose_labels_can_be_traced(server: Server, proposer: ChatProposer):
    server.script = [GOOD]
    group = proposal_group(SAID, proposer.propose("c1", SAID))
    assert [(rule.violated, rule.origin) for rule in group.examples[0].rules] == [
        (True, "proposed/scripted/c1/violated"),
        (True, "proposed/scripted/c1/paraphrase"),
        (False, "proposed/scripted/c1/kept"),
    ]
    assert group.orders[0].more == (0, 0)
    assert group.orders[0].less == (0, 2)


def test_a_file_of_proposals_is_read_as_training_data(server: Server, proposer: ChatProposer, tmp_path: Path):
    server.script = [GOOD]
    propose_file(write(tmp_path / "in", make_row("a")), tmp_path / "out", proposer)
    group = read_proposals(tmp_path / "out")[0]
    assert group.examples[0].views == (SAID,)
    assert group.examples[0].rules[0].text == GOOD["violated"]


def test_a_line_that_is_no_proposal_is_named(tmp_path: Path):
    with pytest.raises(RowError, match=r"out:1: not a proposal \(no field 'violated'\)"):
        read_proposals(write(tmp_path / "out", make_row("a")))
