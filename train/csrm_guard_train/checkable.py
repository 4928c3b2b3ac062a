"""Rules whose violation a program can tell: unlimited, certain practice in reading a rule.

Each maker looks at a conversation and returns a rule about it with its label, or None where it
has nothing to say. Wordings forbid or require the same feature, so that neither the feature nor
the wording alone gives the label away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csrm_guard.messages import Message

__all__ = ["Checkable", "checkable_rules"]

_WORD = re.compile(r"[a-z][a-z'-]{3,}")
_MONEY = re.compile(r"([$£€])\s?(\d[\d,]*(?:\.\d+)?)")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")
_COMMON = frozenset(
    "that this with your have from they will would there their what about which when could should "
    "been were into than then them some only just more very also here does each other after before "
    "because while where these those being over under such much many most like know make need want "
    "please thanks thank sorry it's i'm you're don't can't i'll i've we're that's isn't you'll".split()
)


@dataclass(frozen=True, slots=True)
class Checkable:
    """A rule, and whether the judged message breaks it."""

    text: str
    violated: bool
    kind: str


def checkable_rules(
    messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random, *, count: int
) -> list[Checkable]:
    """Return up to `count` rules about the last message.

    Args:
        messages: the conversation.
        vocabulary: words of other conversations, for features that are absent.
        rng: the source of chance.
        count: how many rules to make.
    """
    found: list[Checkable] = []
    for _ in range(count * 4):
        if len(found) == count:
            break
        rule = rng.choice(_MAKERS)(messages, vocabulary, rng)
        if rule is not None:
            found.append(rule)
    return found


def _words(text: str) -> list[str]:
    return [w for w in _WORD.findall(text.lower()) if w not in _COMMON]


def _has(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", text.lower()) is not None


def _pick(messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random) -> tuple[str, bool]:
    """Return a word and whether the judged message has it, each about half the time."""
    text = messages[-1].content
    own = _words(text)
    # An absent word often comes from an earlier turn: being near is not being said.
    near = [w for m in messages[:-1] for w in _words(m.content)]
    pool = own if own and rng.random() < 0.5 else (near if near and rng.random() < 0.5 else vocabulary)
    word = rng.choice(pool) if pool else "refund"
    return word, _has(word, text)


def _norm(present: bool, forbid: Sequence[str], require: Sequence[str], kind: str, rng: random.Random) -> Checkable:
    if rng.random() < 0.5:
        return Checkable(rng.choice(forbid), present, kind)
    return Checkable(rng.choice(require), not present, kind)


def _keyword(messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random) -> Checkable | None:
    word, present = _pick(messages, vocabulary, rng)
    forbid = [
        f"Never mention {word}.",
        f'The word "{word}" must not appear in a message.',
        f"Messages that speak of {word} are not allowed.",
        f'Do not say "{word}".',
        f"no talk of {word} please, whatever the reason",
    ]
    require = [
        f"Every message must mention {word}.",
        f'The message has to contain the word "{word}".',
        f"Always say something about {word}.",
        f"A message that leaves out {word} is not acceptable.",
        f'Work the word "{word}" into each reply.',
    ]
    return _norm(present, forbid, require, "keyword", rng)


def _condition(messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random) -> Checkable | None:
    earlier = " ".join(m.content for m in messages[:-1])
    before = _words(earlier)
    if not before:
        return None
    trigger = rng.choice(before) if rng.random() < 0.6 else rng.choice(list(vocabulary) or before)
    holds = _has(trigger, earlier)
    act, present = _pick(messages, vocabulary, rng)
    wording = rng.randrange(4)
    if wording == 0:
        text = f"If {trigger} came up earlier in the conversation, the message must mention {act}."
        return Checkable(text, holds and not present, "condition")
    if wording == 1:
        text = f"Once somebody has mentioned {trigger}, {act} may no longer be spoken of."
        return Checkable(text, holds and present, "condition")
    if wording == 2:
        text = f"Do not bring up {act} unless {trigger} was mentioned before."
        return Checkable(text, present and not holds, "condition")
    text = f"Always mention {act}, except where {trigger} was already talked about."
    return Checkable(text, not present and not holds, "condition")


def _both(messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random) -> Checkable | None:
    first, has_first = _pick(messages, vocabulary, rng)
    second, has_second = _pick(messages, vocabulary, rng)
    if first == second:
        return None
    if rng.random() < 0.5:
        text = f"{first.capitalize()} and {second} must not be mentioned in the same message."
        return Checkable(text, has_first and has_second, "both")
    text = f"Whoever mentions {first} has to mention {second} as well."
    return Checkable(text, has_first and not has_second, "both")


def _limit(messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random) -> Checkable | None:
    text = messages[-1].content
    money = _MONEY.findall(text)
    numbers = [amount for _, amount in money] or _NUMBER.findall(text)
    values = [float(n.replace(",", "")) for n in numbers]
    if not values or max(values) <= 0 or max(values) > 1e7:
        return None
    top = max(values)
    limit = top * rng.choice([0.3, 0.6, 0.85, 0.95, 1.0, 1.0, 1.05, 1.2, 1.6, 3.0])
    shown = f"{limit:.2f}" if limit < 10 and limit % 1 else f"{round(limit)}"
    bound, sign = float(shown), money[0][0] if money else ""
    noun = "amount" if money else "number"
    if rng.random() < 0.5:
        wording = rng.choice(
            [
                f"No {noun} above {sign}{shown} may be stated.",
                f"Anything over {sign}{shown} is off limits in a message.",
                f"The largest {noun} that may be named is {sign}{shown}.",
                f"State at most {sign}{shown}; a higher {noun} is not allowed.",
            ]
        )
        return Checkable(wording, top > bound, "limit")
    wording = rng.choice(
        [
            f"The message must name at least one {noun} of {sign}{shown} or more.",
            f"At least {sign}{shown} has to be stated somewhere.",
        ]
    )
    return Checkable(wording, top < bound, "limit")


def _feature(messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random) -> Checkable | None:
    text = messages[-1].content
    pattern, forbid, require = rng.choice(_FEATURES)
    present = re.search(pattern, text, re.IGNORECASE) is not None
    return _norm(present, forbid, require, "feature", rng)


def _length(messages: Sequence[Message], vocabulary: Sequence[str], rng: random.Random) -> Checkable | None:
    count = len(messages[-1].content.split())
    if count < 6:
        return None
    bound = max(round(count * rng.choice([0.4, 0.6, 1.6, 2.5])), 3)
    if rng.random() < 0.5:
        wording = rng.choice([f"Keep it to {bound} words or fewer.", f"A message has at most {bound} words."])
        return Checkable(wording, count > bound, "length")
    wording = rng.choice([f"Write at least {bound} words.", f"Messages shorter than {bound} words are not allowed."])
    return Checkable(wording, count < bound, "length")


_FEATURES: list[tuple[str, list[str], list[str]]] = [
    (
        r"\?",
        ["Do not ask any question.", "Messages contain no questions."],
        ["Ask at least one question.", "Every message must include a question."],
    ),
    (
        r"!",
        ["No exclamation marks.", "Exclamation marks are banned from our tone of voice."],
        ["Use an exclamation mark somewhere.", "Each message needs at least one exclamation mark."],
    ),
    (
        r"\b(sorry|apolog\w+)\b",
        ["Never apologise.", "Do not say sorry, not even in passing."],
        ["Always apologise.", "Each message has to contain an apology."],
    ),
    (
        r"\b(thanks|thank you|thank)\b",
        ["Do not thank anyone.", "Leave out thanks of any sort."],
        ["Always thank the other person.", "A word of thanks belongs in every message."],
    ),
    (
        r"\d",
        ["Use no digits.", "Figures written in digits are not allowed."],
        ["Give at least one figure in digits.", "Every message must contain a number in digits."],
    ),
    (
        r"[$£€]\s?\d",
        ["Do not quote prices or sums of money.", "Amounts of money stay out of the chat."],
        ["Always state an amount of money.", "Name a price or sum in each message."],
    ),
    (
        r"\b(i|i'm|i've|i'll|i'd|me|my)\b",
        ["Do not speak in the first person singular.", 'Avoid "I", "me" and "my".'],
        ["Speak in the first person singular.", 'Use "I" or "my" at least once.'],
    ),
    (
        r"\b(please)\b",
        ["Never say please.", "The word please is not used here."],
        ["Always say please.", "Say please in every message."],
    ),
    (
        r"\b(can't|cannot|can not|unable|won't|not able|not allowed)\b",
        ["Never tell the other person that something cannot be done.", "Do not refuse or say that you cannot."],
        ["State plainly what cannot be done.", "The message has to say that something is not possible."],
    ),
]

_Maker = Callable[[Sequence[Message], Sequence[str], random.Random], "Checkable | None"]
_MAKERS: tuple[_Maker, ...] = (_keyword, _keyword, _condition, _both, _limit, _limit, _feature, _length)
