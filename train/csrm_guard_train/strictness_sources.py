"""What Algorithm 1 is run on: the authored ladders, and public sets that name categories or grade severity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from csrm_guard.errors import MessageError, RowError
from csrm_guard.messages import parse_messages
from csrm_guard.rows import read_jsonl
from csrm_guard_train.data import Authored, Ladder
from csrm_guard_train.labellers import (
    Conversation,
)
from csrm_guard_train.strictness import (
    Source,
    authored_severity,
    describe,
    measured_severity,
)

__all__ = ["authored_sources", "public_sources"]


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
