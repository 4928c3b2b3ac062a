"""Keep provably stricter guideline texts: csrm-strictness --data DIR [--public DIR] --out DIR.

Applies Algorithm 1 to the authored ladders and to public sets that name categories or grade severity. Writes
pairs.jsonl (kept pairs: texts, conversation ids and labels, no conversation) and report.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from csrm_guard.errors import CsrmGuardError, MessageError, RowError
from csrm_guard.messages import parse_messages
from csrm_guard.rows import read_jsonl
from csrm_guard_train.data import Authored, Ladder, read_authored
from csrm_guard_train.strictness import (
    AnnotatedLabeller,
    Conversation,
    CrossFittedLabeller,
    Judged,
    Labelled,
    Labeller,
    Meanings,
    Outcome,
    Settings,
    Source,
    StrictnessError,
    StrictPair,
    authored_severity,
    describe,
    measured_severity,
    strictness,
)

__all__ = ["Judges", "authored_sources", "markdown", "public_sources", "read_pairs", "two_judges", "write_pairs"]

app = typer.Typer(add_completion=False)
_DATA = Path(__file__).resolve().parents[1] / "data" / "authored"


class Judges(str, Enum):
    """Which labellers must find a pair in order."""

    BOTH = "both"
    ANNOTATED = "annotated"
    TEXT = "text"


# Sets whose rows name one category: file -> (licence, our category, label -> its words, gravest first).
_CATEGORIES: dict[str, tuple[str, str, dict[str, str]]] = {
    "red_instruct_prompts": (
        "Apache-2.0",
        "harmful_requests",
        {
            "Child Abuse": "abuse, neglect or sexual exploitation of children",
            "Physical Harm": "injuring people or oneself, weapon making, dangerous practices",
            "Hate/Harass/Violence": "hatred, harassment or extremist violence against groups",
            "Illegal Activity": "drugs, trafficking, theft and other crime",
            "Malware Viruses": "malware, spyware and ransomware",
            "Fraud/Deception": "scams, phishing, counterfeiting and identity theft",
            "Privacy Violation Activity": "spying, doxxing and theft of personal data",
            "Economic Harm": "financial crime, market manipulation and bogus jobs or investments",
            "Adult Content": "pornography and sexually explicit material for adults",
            "Political Campaigning": "campaigning, lobbying and partisan persuasion",
            "Tailored Financial Advice": "personal advice on investments, tax, debt or retirement",
        },
    ),
    "harmful_prompts_misc": (
        "MIT",
        "forbidden_questions",
        {
            "Violence": "violence, weapons and physical attacks",
            "Hate, harassment and discrimination": "hatred, harassment and discrimination",
            "Illegal goods and services": "illegal goods and services, such as drugs or stolen wares",
            "Non-violent crimes": "theft, fraud, hacking and other crime without violence",
            "Sexual content": "sexual content",
            "Disinformation and deception": "false news, conspiracy tales and deceptive messages",
        },
    ),
    "diasafety": (
        "Apache-2.0",
        "chatbot_replies",
        {
            "Risk Ignorance": "playing down a person's distress, illness or danger",
            "Biased Opinion": "biased opinions about groups of people",
            "Offending User": "insults and mockery of the person it talks to",
            "Toxicity Agreement": "agreeing with a toxic remark",
            "Unauthorized Expertise": "specialist advice, such as medical advice, from a chatbot",
        },
    ),
}
# PyRIT's human scores of 0.25, 0.5, 0.75 and 1 in our words, mildest first, after its published scales.
_RATED = "pyrit_scorer_evals"
_BANDS: dict[str, tuple[str, str, str, str]] = {
    "violence": (
        "faint or passing hints of violence",
        "plain but not graphic violence",
        "explicit, graphic violence",
        "extreme or gratuitous violence that disturbs",
    ),
    "hate_speech": (
        "isolated or implicit slights against a group of people",
        "noticeable prejudice or discrimination against a group of people",
        "active promotion of hatred or discrimination",
        "pervasive, intense hatred that endangers the people it is aimed at",
    ),
    "self_harm": (
        "slight encouragement of harmful acts beside clear warnings",
        "moderate encouragement of harmful acts with some warning",
        "strong encouragement of harmful acts with hardly a warning",
        "pressing someone into harmful acts without any warning",
    ),
    "sexual_content": (
        "educational, medical or romantic mentions of sex",
        "suggestive or intimate material without graphic detail",
        "explicit sexual material",
        "extreme, non-consensual or exploitative sexual material",
    ),
    "privacy": (
        "ways to get at private information, without disclosing any",
        "vague or inferred hints at private information",
        "partial disclosure of private information",
        "complete disclosure of private information",
    ),
    "exploits": (
        "general talk of how people or systems are exploited",
        "incomplete instructions or known code for an exploit",
        "mostly complete instructions made to do damage",
        "complete, actionable instructions for a severe exploit",
    ),
    "information_integrity": (
        "slight inaccuracies",
        "misguided or subjective claims without conviction",
        "clear falsehoods stated with conviction",
        "wholly made-up, extreme falsehoods",
    ),
}


def authored_sources(authored: Authored) -> list[Source]:
    """Return a source per ladder: its rungs are the subcategories, its hand-written guidelines the texts."""
    sources = [_ladder(ladder, authored) for _, ladder in sorted(authored.ladders.items())]
    return [source for source in sources if source.conversations]


def _ladder(ladder: Ladder, authored: Authored) -> Source:
    words = ladder.rungs
    conversations = []
    for rung in authored.rungs:
        if rung.category == ladder.category:
            shows = frozenset({words[rung.level]} if rung.level else ())
            conversations.append(Conversation(rung.id, rung.messages, shows, frozenset(words.values()) - shows))
    levels = {text: level for level, text in words.items()}

    def describer(disallowed: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
        return ladder.guidelines[min(levels[text] for text in disallowed)]

    return Source(
        id=f"ladders/{ladder.category}",
        category=ladder.category,
        conversations=tuple(conversations),
        subcategories=tuple(words.values()),
        most_severe=authored_severity({text: float(level) for text, level in levels.items()}),
        describer=describer,
        origin="authored ladders (Apache-2.0)",
    )


def public_sources(folder: Path, *, seed: int = 0, wordings: int = 1) -> list[Source]:
    """Return a source per usable category of the known public files that the folder holds.

    Rows with `split_hint` other than train are left out, as are rows without a category or a severity.

    Args:
        folder: holds `NAME.jsonl.gz` or `NAME.jsonl` files of normalised rows (train/data/README.md).
        seed: draws the wordings.
        wordings: how many of each guideline; a pair must pass with all.

    Raises:
        RowError: no such folder, or a broken file.
    """
    if not folder.is_dir():
        raise RowError(f"{folder}: no such folder; --public takes the folder of normalised public sets")
    sources = [_named(name, _rows(folder, name), seed, wordings) for name in _CATEGORIES]
    rated = list(_rows(folder, _RATED))
    sources += [_graded(topic, rated, seed, wordings) for topic in _BANDS]
    return [source for source in sources if source.conversations]


def _rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{name}.jsonl*"))[:1]:
        for line, row in read_jsonl(path):
            if not isinstance(row.get("labels"), dict) or "messages" not in row or "id" not in row:
                raise RowError(f"{path}:{line}: a normalised row has id, messages and labels")
            if row.get("split_hint", "train") == "train":
                yield row


def _conversation(row: Mapping[str, Any], shows: Iterable[str], lacks: Iterable[str]) -> Conversation | None:
    try:
        return Conversation(str(row["id"]), parse_messages(row["messages"]), frozenset(shows), frozenset(lacks))
    except MessageError:
        return None


def _named(name: str, rows: Iterable[Mapping[str, Any]], seed: int, wordings: int) -> Source:
    """Return a source whose subcategories are the categories that a set names.

    A category that our table lacks is proposed in step 2 under its own name. Categories that a row does not list are
    unknown; a harmless row lacks the one that it was collected for, or all.
    """
    licence, category, words = _CATEGORIES[name]
    conversations = []
    for row in rows:
        labels = row["labels"]
        named = [words.get(label, label) for label in (labels.get("categories") or ())[:1]]
        topic = words.get((row.get("meta") or {}).get("topic", ""))
        harmless = labels.get("harmful") is False
        lacks = ([topic] if topic else list(words.values())) if harmless else []
        if harmless or named:
            conversations.append(_conversation(row, () if harmless else named, lacks))
    levels = {text: -float(place) for place, text in enumerate(words.values())}
    return Source(
        id=name,
        category=category,
        conversations=tuple(c for c in conversations if c is not None),
        subcategories=tuple(words.values()),
        most_severe=authored_severity(levels),
        describer=partial(describe, category=category, seed=seed, count=wordings),
        origin=f"{name} ({licence})",
    )


def _graded(topic: str, rows: Iterable[Mapping[str, Any]], seed: int, wordings: int) -> Source:
    """Return a source whose subcategories are bands of the severity that people gave."""
    bands = _BANDS[topic]
    rated = []
    for row in rows:
        severity = row["labels"].get("severity")
        if severity is None or (row.get("meta") or {}).get("topic") != topic:
            continue
        if not isinstance(severity, int | float) or not 0 <= severity <= 1:
            raise RowError(f"{_RATED}: row {row['id']!r}: severity {severity!r}; give a number from 0 to 1")
        level = round(severity * len(bands))
        shows = frozenset(bands[level - 1 : level] if level else ())
        conversation = _conversation(row, shows, frozenset(bands) - shows)
        if conversation is not None:
            rated.append((conversation, float(severity)))
    return Source(
        id=f"{_RATED}/{topic}",
        category=topic,
        conversations=tuple(c for c, _ in rated),
        subcategories=bands,
        most_severe=measured_severity(rated),
        describer=partial(describe, category=topic, seed=seed, count=wordings),
        origin=f"{_RATED} (MIT)",
    )


def two_judges(
    source: Source, meanings: Meanings, *, folds: int = 5, which: Judges = Judges.BOTH
) -> dict[str, Labeller]:
    """Return the labellers of the test: annotations (a text classifier where they are silent), and it alone.

    The first labels the conversations of a pair. Both must pass by default: the first says that enough people's
    labels are there, the second that the order can be told from conversations that it has not seen.
    """
    fitted = CrossFittedLabeller.fit(source.conversations, meanings, folds=folds)
    both: dict[str, Labeller] = {"annotated": AnnotatedLabeller(meanings, otherwise=fitted), "text": fitted}
    return both if which is Judges.BOTH else {which.value: both[which.value]}


def write_pairs(path: Path, pairs: Iterable[StrictPair]) -> None:
    """Write one pair per line."""
    lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
    path.write_text("".join(lines), encoding="utf-8")


def read_pairs(path: Path) -> tuple[StrictPair, ...]:
    """Return the pairs of a file that `write_pairs` wrote.

    Raises:
        RowError: a line is not such a pair; names file and line.
    """
    pairs = []
    for line, row in read_jsonl(path):
        try:
            labels = tuple(Labelled(**label) for label in row.pop("labels"))
            pairs.append(StrictPair(**row, labels=labels))
        except (KeyError, TypeError) as exc:
            raise RowError(f"{path}:{line}: not a strict pair ({exc}); write it again by csrm-strictness") from exc
    return tuple(pairs)


_COLUMNS = (
    "category", "source", "subcategories", "proposed", "unsafe", "pool", "clusters", "covered", "agrees", "pairs",
    "kept", "too few (n)", "bound too low",
)  # fmt: skip


def _cells(outcome: Outcome) -> list[str]:
    source, coverage = outcome.source, outcome.coverage
    drops = Counter(_fate(row) for row in outcome.judged)
    return [
        source.category,
        source.origin,
        str(len(coverage.subcategories)),
        str(len(coverage.proposed)),
        str(sum(bool(c.shows) for c in source.conversations)),
        str(coverage.pool),
        str(outcome.clusters),
        "" if not coverage.pool else f"{coverage.share:.2f}",
        "" if not coverage.pool else " / ".join(f"{value:.2f}" for value in outcome.accuracy.values()),
        str(len(outcome.judged)),
        str(drops["kept"]),
        str(drops["small"]),
        str(drops["bound"]),
    ]


def _fate(row: Judged) -> str:
    if row.kept:
        return "kept"
    return "small" if any(test.small for test in row.tests.values()) else "bound"


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the report: a line per category, what the numbers mean, and a line per pair tested."""
    lines = ["# Strictness augmentation", "", _line(_COLUMNS), "|" + "---|" * len(_COLUMNS)]
    lines += [_line(_cells(outcome)) for outcome in outcomes]
    tested = sum(len(o.judged) for o in outcomes)
    kept = sum(row.kept for o in outcomes for row in o.judged)
    lines += [
        "",
        f"{kept} of {tested} pairs kept, as {sum(len(o.pairs) for o in outcomes)} pairs of texts.",
        "",
        _NOTES,
    ]
    lines += ["## Pairs", "", "`a>b`: the b, and the a, gravest subcategories are disallowed.", ""]
    lines += [_line(("pair", "k/n and bound by labeller", "outcome")), "|---|---|---|"]
    lines += [_line(_pair_cells(row)) for outcome in outcomes for row in outcome.judged]
    return "\n".join(lines) + "\n"


_NOTES = """\
- A pair is kept if, with every labeller, the lower bound of Pr[unsafe under strict | unsafe under lenient] exceeds
  the level. *too few (n)*: with some labeller n is so small that no result could pass; *bound too low*: n sufficed.
- *pool*: distinct conversations, drawn from the *unsafe*; *clusters*: those of them that share no turn. The test counts
  conversations as if independent, each once over all wordings, and corrects for no multiple testing, as the paper.
  Where clusters are far fewer than the pool, the bound claims too much: `--independent` takes one of each cluster.
- *annotated* is monotone by construction where annotations decide: that test asks only for enough data. *text* is a
  classifier that never saw the conversation. Neither reads the wording: they know what it was written to disallow.
- *agrees*: how often each labeller says what the annotation says, where it says anything. Where unlisted categories
  are unknown (sets that name categories) that is recall alone.
"""


def _pair_cells(row: Judged) -> tuple[str, str, str]:
    numbers = (f"{name} {test.k}/{test.n} {test.bound:.3f}" for name, test in row.tests.items())
    reasons = (f"{name}: {test.reason}" for name, test in row.tests.items() if not test.kept)
    return row.candidate.id, "; ".join(numbers), next(reasons, "kept")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(*_COLUMNS, title="strictness augmentation")
    for outcome in outcomes:
        table.add_row(*_cells(outcome))
    return table


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder that gets pairs.jsonl and report.md.")],
    data: Annotated[Path, typer.Option(help="Folder of authored sets.")] = _DATA,
    public: Annotated[Path | None, typer.Option(help="Folder of normalised public sets, optional.")] = None,
    cap: Annotated[int, typer.Option(min=1, help="Most conversations of a category's pool.")] = 200,
    wordings: Annotated[int, typer.Option(min=1, max=6, help="Wordings per guideline of a public category.")] = 1,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the text classifier.")] = 5,
    independent: Annotated[bool, typer.Option(help="Take one conversation only of those that share a turn.")] = False,
    labeller: Annotated[Judges, typer.Option(help="Who must find a pair in order.")] = Judges.BOTH,
    seed: Annotated[int, typer.Option(help="Of pools and wordings.")] = 0,
) -> None:
    """Test guideline pairs category by category; write those kept and say why others were dropped."""
    try:
        sources = authored_sources(read_authored(data))
        sources += public_sources(public, seed=seed, wordings=wordings) if public else []
        settings = Settings(cap=cap, seed=seed, independent=independent)
        judges = partial(two_judges, folds=folds, which=labeller)
        outcomes = [strictness(source, judges, settings) for source in sources]
    except (CsrmGuardError, StrictnessError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    out.mkdir(parents=True, exist_ok=True)
    write_pairs(out / "pairs.jsonl", (pair for outcome in outcomes for pair in outcome.pairs))
    (out / "report.md").write_text(markdown(outcomes), encoding="utf-8")
    Console(width=200).print(_table(outcomes))
    typer.echo(f"{out / 'pairs.jsonl'}, {out / 'report.md'}", err=True)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
