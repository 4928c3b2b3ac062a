"""Propose, per conversation, a rule that it breaks (p+) and one that it keeps (p-) (paper 3.2, Eq. 1).

The paper asks a reasoning model. Here `AuthoredProposer` looks the proposals up in the authored items, and
`ChatProposer` asks any OpenAI-compatible server: csrm-propose IN.jsonl OUT.jsonl --base-url URL --model NAME.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csrm_guard.errors import CsrmGuardError, MessageError, RowError, RuntimeMissing
from csrm_guard.messages import Message, parse_messages
from csrm_guard.rows import read_jsonl
from csrm_guard.template import render_context
from csrm_guard_train.data import Authored
from csrm_guard_train.groups import Example, Group, LabelledRule, Order

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = [
    "AuthoredProposer",
    "ChatProposer",
    "Proposal",
    "ProposalError",
    "Proposer",
    "proposal_group",
    "propose_file",
]

app = typer.Typer(add_completion=False)

_ASK = """\
You help to build a training set for a model that checks conversations against a deployment's rules.
Read the conversation. The last message is judged. Write two rules that a real deployment could have, near to each other
in topic and vocabulary, so that only careful reading tells them apart:
- "violated": a rule that the last message clearly breaks;
- "kept": a rule about the same topic under which the last message is clearly fine.
Add "paraphrases": one to three other wordings of the violated rule with exactly its meaning, and "reason": in one
sentence, which words of the message decide. Do not name the conversation in a rule.
Answer with one JSON object with the keys violated, kept, paraphrases, reason, and nothing else."""


class ProposalError(Exception):
    """No usable proposal; the message names the conversation."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Two rules for one conversation.

    Attributes:
        violated: p+, a rule that the last message breaks.
        kept: p-, a rule on the same topic that it keeps.
        paraphrases: other wordings of `violated`.
        reason: why, in words; for people who trace a wrong label.
        origin: who proposed it for which conversation.
    """

    violated: str
    kept: str
    paraphrases: tuple[str, ...]
    reason: str
    origin: str


class Proposer(Protocol):
    """Anything that proposes rules for a conversation."""

    def propose(self, key: str, messages: Sequence[Message]) -> Proposal:
        """Return a proposal.

        Args:
            key: id of the conversation.
            messages: the conversation; the last message is judged.

        Raises:
            ProposalError: none can be made; names the key.
        """


class AuthoredProposer:
    """The shipped proposals: an item's rule breaks its violating message, its lenient wording keeps it."""

    def __init__(self, authored: Authored) -> None:
        self._known: dict[tuple[Message, ...], Proposal] = {}
        for item in authored.items:
            self._known[item.violating] = Proposal(
                item.rule, item.lenient, (item.paraphrase,), "", f"authored/{item.id}/violating"
            )
            if item.strict:
                self._known[item.compliant] = Proposal(item.strict, item.rule, (), "", f"authored/{item.id}/compliant")

    def propose(self, key: str, messages: Sequence[Message]) -> Proposal:
        """Return what was written for this conversation."""
        found = self._known.get(tuple(messages))
        if found is None:
            raise ProposalError(f"{key}: no authored item holds this conversation")
        return found


class _Answer(BaseModel):
    """What a model must answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    violated: str = Field(min_length=8)
    kept: str = Field(min_length=8)
    paraphrases: tuple[str, ...] = Field(min_length=1, max_length=3)
    reason: str = Field(min_length=1)


class ChatProposer:
    """Ask a chat model behind an OpenAI-compatible server.

    Failed requests are repeated by the client (`max_retries`). An answer that is not the JSON asked for is sent
    back once with what is wrong; a second one is an error.

    Args:
        client: an `openai.OpenAI` with its base URL, key and retries.
        model: its name on the server.
        temperature: of sampling.
    """

    def __init__(self, client: OpenAI, model: str, *, temperature: float = 0.7) -> None:
        self._client, self._model, self._temperature = client, model, temperature

    def propose(self, key: str, messages: Sequence[Message]) -> Proposal:
        """Return the model's proposal."""
        lines = [render_context(message) for message in messages]
        lines[-1] = f"(judged) {lines[-1]}"
        asked: list[dict[str, str]] = [
            {"role": "system", "content": _ASK},
            {"role": "user", "content": "\n".join(lines)},
        ]
        problem = ""
        for _ in range(2):
            text = self._complete(key, asked)
            try:
                answer = _Answer.model_validate_json(_json_of(text))
            except ValidationError as exc:
                problem = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'JSON'}: {e['msg']}" for e in exc.errors())
                asked += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": f"That is not the JSON object asked for ({problem}). Answer again."},
                ]
                continue
            fields = answer.model_dump()
            return Proposal(**fields, origin=f"proposed/{self._model}/{key}")
        raise ProposalError(f"{key}: {self._model} gave no usable JSON twice: {problem}")

    def _complete(self, key: str, asked: list[dict[str, str]]) -> str:
        from openai import OpenAIError

        try:
            found = self._client.chat.completions.create(
                model=self._model,
                messages=asked,  # type: ignore[arg-type]  # plain dicts of its own shape
                temperature=self._temperature,
            )
        except OpenAIError as exc:
            raise ProposalError(f"{key}: {self._model}: {exc}") from exc
        return (found.choices[0].message.content if found.choices else None) or ""


def _json_of(text: str) -> str:
    """Return the text from its first brace to its last: many models wrap JSON in a code fence."""
    return text[text.find("{") : text.rfind("}") + 1]


def proposal_group(messages: Sequence[Message], proposal: Proposal) -> Group:
    """Return the conversation under p+, a paraphrase of it, and p-, as training data with its origin."""
    rules = [
        LabelledRule(proposal.violated, True, f"{proposal.origin}/violated"),
        *(LabelledRule(text, True, f"{proposal.origin}/paraphrase", (), 0.8) for text in proposal.paraphrases[:1]),
        LabelledRule(proposal.kept, False, f"{proposal.origin}/kept"),
    ]
    example = Example((tuple(messages),), tuple(rules))
    return Group(proposal.origin, (example,), (Order((0, 0), (0, len(rules) - 1)),))


def propose_file(source: Path, out: Path, proposer: Proposer) -> tuple[int, list[str]]:
    """Append a proposal to `out` for every row of `source` that has none yet.

    Returns:
        How many were added, and what went wrong with the others.

    Raises:
        RowError: a row without id or readable messages; names file and line.
    """
    done = {row["id"] for _, row in read_jsonl(out)} if out.is_file() else set()
    added, failures = 0, []
    with out.open("a", encoding="utf-8") as target:
        for line, row in read_jsonl(source):
            key, messages = _conversation(row, f"{source}:{line}")
            if key in done:
                continue
            try:
                proposal = proposer.propose(key, messages)
            except ProposalError as exc:
                failures.append(str(exc))
                continue
            said = [{"role": m.role, "content": m.content} for m in messages]
            target.write(json.dumps({"id": key, "messages": said, **asdict(proposal)}, ensure_ascii=False) + "\n")
            # A row is paid for: an interruption must not lose it.
            target.flush()
            added += 1
    return added, failures


def read_proposals(path: Path) -> list[Group]:
    """Return the training data of a file that `propose_file` wrote.

    Raises:
        RowError: a line is not such a proposal; names file and line.
    """
    groups = []
    for line, row in read_jsonl(path):
        _, messages = _conversation(row, f"{path}:{line}")
        try:
            fields = {name: row[name] for name in ("violated", "kept", "reason", "origin")}
            proposal = Proposal(**fields, paraphrases=tuple(row["paraphrases"]))
        except KeyError as exc:
            raise RowError(f"{path}:{line}: not a proposal (no field {exc}); write it again by csrm-propose") from exc
        groups.append(proposal_group(messages, proposal))
    return groups


def _conversation(row: Mapping[str, Any], where: str) -> tuple[str, tuple[Message, ...]]:
    if not isinstance(row.get("id"), str):
        raise RowError(f"{where}: a row needs an `id`, by which it is found again")
    try:
        return row["id"], parse_messages(row.get("messages", ()))
    except MessageError as exc:
        raise RowError(f"{where}: {exc}") from exc


@app.command()
def run(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Rows with `id` and `messages`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Gets a proposal per row; appended to.")],
    model: Annotated[str, typer.Option(help="Name of the model on the server.")],
    base_url: Annotated[str | None, typer.Option(help="Of the server; default: the client's own.")] = None,
    key_variable: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    retries: Annotated[int, typer.Option(min=0, help="Of a failed request.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling.")] = 0.7,
) -> None:
    """Ask for what is missing; run again to go on. Exit code 1 if a row got no proposal."""
    try:
        proposer = ChatProposer(_client(base_url, key_variable, retries), model, temperature=temperature)
        added, failures = propose_file(source, out, proposer)
    except CsrmGuardError as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    for failure in failures:
        typer.echo(failure, err=True)
    typer.echo(f"{added} proposals added to {out}, {len(failures)} failed")
    if failures:
        raise typer.Exit(1)


def _client(base_url: str | None, key_variable: str, retries: int) -> OpenAI:
    try:
        from openai import OpenAI
    except ImportError as exc:
        raise RuntimeMissing("csrm-propose needs the openai client: pip install 'csrm-guard[openai]'") from exc
    # Local servers want no key, the client wants one: any text does.
    return OpenAI(base_url=base_url, api_key=os.environ.get(key_variable) or "none", max_retries=retries)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
