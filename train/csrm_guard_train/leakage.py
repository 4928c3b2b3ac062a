"""Find text that training and evaluation share: csrm-leakage --train PATH --evaluation PATH.

Two texts leak into each other if they are equal once case, punctuation and spacing are gone, or share eight
words in a row. Any of the project's formats is read: every string that holds conversation or rule text counts.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from csrm_guard.errors import CsrmGuardError, RowError
from csrm_guard.rows import read_jsonl

__all__ = ["Leak", "Text", "find_leaks", "normalised", "read_texts"]

app = typer.Typer(add_completion=False)
GRAM = 8
# What describes a row rather than being read by a model.
_LABELS = frozenset(
    {"id", "source", "pair", "variant", "kind", "domain", "category", "stage", "scope", "label", "labels", "violated",
     "role", "stance", "target", "name", "policy_name", "why", "difficulty", "split_hint", "meta", "origin",
     "disallow_from", "level", "type"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    """One string of a row.

    Attributes:
        file: where it stands.
        id: of its row, or `line N`.
        field: path within the row, such as `messages[1].content`.
        words: the text without case and punctuation.
    """

    file: str
    id: str
    field: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leak:
    """A text of the training side and one of the evaluation side that share words.

    Attributes:
        shared: the first eight words that both hold, or the whole text if it is shorter.
        whole: whether the texts are equal.
    """

    train_file: str
    train_id: str
    train_field: str
    evaluation_file: str
    evaluation_id: str
    evaluation_field: str
    shared: str
    whole: bool


def normalised(text: str) -> tuple[str, ...]:
    """Return the words of a text without case, punctuation and spacing."""
    return tuple(re.findall(r"\w+", text.casefold()))


def read_texts(path: Path) -> Iterator[Text]:
    """Yield every text of a .jsonl or .jsonl.gz file, or of all such files of a folder.

    Raises:
        RowError: the path does not exist or holds no such file, or a line is not JSON; names the place.
    """
    if not path.is_dir():
        files = [path]
    else:
        files = sorted(p for p in path.rglob("*.jsonl*") if p.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise RowError(f"{path}: holds no .jsonl or .jsonl.gz file")
    for file in files:
        for line, row in read_jsonl(file):
            key = str(row.get("id", f"line {line}"))
            yield from (Text(str(file), key, field, words) for field, words in _texts(row, ""))


def _texts(value: object, field: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(value, str):
        words = normalised(value)
        if words:
            yield field, words
    elif isinstance(value, dict):
        for name, part in value.items():
            # A policy may be a text (public sets) or an object whose `name` is a label.
            if name not in _LABELS:
                yield from _texts(part, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _texts(part, f"{field}[{i}]")


def find_leaks(train: Sequence[Path], evaluation: Sequence[Path], *, fewest: int = 6) -> Iterator[Leak]:
    """Yield one leak for each pair of texts that share words; the evaluation side is held in memory.

    Args:
        train: files or folders.
        evaluation: files or folders.
        fewest: equal texts of fewer words ("do not give tax advice") are no leak.

    Raises:
        RowError: see `read_texts`.
    """
    index = _Index(fewest)
    for path in evaluation:
        for text in read_texts(path):
            index.add(text)
    for path in train:
        for text in read_texts(path):
            for other, shared, whole in index.like(text):
                yield Leak(text.file, text.id, text.field, other.file, other.id, other.field, " ".join(shared), whole)


class _Index:
    """Texts by their words and by each eight words in a row."""

    def __init__(self, fewest: int) -> None:
        self._fewest = fewest
        self._grams: dict[tuple[str, ...], list[Text]] = defaultdict(list)
        self._wholes: dict[tuple[str, ...], list[Text]] = defaultdict(list)

    def add(self, text: Text) -> None:
        if self._fewest <= len(text.words):
            self._wholes[text.words].append(text)
        for gram in set(_grams(text.words)):
            self._grams[gram].append(text)

    def like(self, text: Text) -> list[tuple[Text, tuple[str, ...], bool]]:
        """Return each text that shares words with this one once, with what is shared, and whether all is."""
        found = {id(other): (other, text.words[:GRAM], True) for other in self._wholes.get(text.words, ())}
        for gram in _grams(text.words):
            for other in self._grams.get(gram, ()):
                found.setdefault(id(other), (other, gram, False))
        return list(found.values())


def _grams(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (words[i : i + GRAM] for i in range(len(words) - GRAM + 1))


def _summary(leaks: Sequence[Leak]) -> dict[str, Any]:
    return {
        "leaks": len(leaks),
        "train_rows": len({(leak.train_file, leak.train_id) for leak in leaks}),
        "evaluation_rows": len({(leak.evaluation_file, leak.evaluation_id) for leak in leaks}),
        "equal_texts": sum(leak.whole for leak in leaks),
    }


@app.command()
def run(
    train: Annotated[list[Path], typer.Option(help="A file or folder that is trained on; may be given again.")],
    evaluation: Annotated[list[Path], typer.Option(help="A file or folder that is evaluated on; may be given again.")],
    out: Annotated[Path | None, typer.Option(help="Gets every leak as JSON lines.")] = None,
    show: Annotated[int, typer.Option(min=0, help="How many leaks to print.")] = 20,
) -> None:
    """Compare; the exit code is 1 if anything is shared, 2 if something cannot be read."""
    try:
        leaks = list(find_leaks(train, evaluation))
    except CsrmGuardError as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    if out is not None:
        out.write_text("".join(json.dumps(asdict(leak), ensure_ascii=False) + "\n" for leak in leaks), encoding="utf-8")
    for leak in leaks[:show]:
        typer.echo(
            f"{leak.train_file} {leak.train_id} {leak.train_field} ~ "
            f"{leak.evaluation_file} {leak.evaluation_id} {leak.evaluation_field}: {leak.shared}"
        )
    typer.echo(json.dumps(_summary(leaks)))
    if leaks:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
