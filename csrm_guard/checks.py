"""Rules that a program decides: a user's own function, patterns, lists of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from csrm_guard.messages import Message

__all__ = ["PII", "Check", "DenylistCheck", "Finding", "PatternCheck", "find_all", "pii_check"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One place of a text that violates a rule.

    Attributes:
        span: characters [start, end).
        q: P(the place violates the rule), in [0, 1].
    """

    span: tuple[int, int]
    q: float = 1.0

    def __post_init__(self) -> None:
        start, end = self.span
        if not (0 <= start <= end and 0.0 <= self.q <= 1.0):
            raise ValueError(f"a finding needs 0 <= start <= end and q in [0, 1], not {self.span}, {self.q}")


class Check(Protocol):
    """Any function of this shape can decide a rule of a policy: Guard(policy, checks={"rule-id": check}).

    It is called with each judged text (the message's content; the arguments of each tool call) and the conversation up
    to it. It may be called from several threads. What it raises is handled by the rule's `on_error`.
    """

    def __call__(self, text: str, messages: tuple[Message, ...], /) -> Sequence[Finding]:
        """Return the violating places of `text`; none: the rule is kept."""
        ...


def find_all(check: Check, messages: tuple[Message, ...]) -> tuple[list[Finding], float]:
    """Return the findings in the judged message's content and the largest q over content and tool arguments."""
    judged = messages[-1]
    inside = list(check(judged.content, messages)) if judged.content else []
    for finding in inside:
        if finding.span[1] > len(judged.content):
            raise ValueError(f"a check found {finding.span} in a text of {len(judged.content)} characters")
    beside = [f for call in judged.tool_calls for f in check(call.arguments, messages)]
    return inside, max((f.q for f in (*inside, *beside)), default=0.0)


class PatternCheck:
    """Find every match of some regular expressions.

    Args:
        patterns: regular expressions, by name; `re.IGNORECASE` is up to the pattern: `(?i)`.
        accept: by name, what must hold of a match for it to count, such as a check digit.

    Raises:
        ValueError: a pattern is no regular expression, or `accept` names none of them.
    """

    def __init__(
        self, patterns: Mapping[str, str], *, accept: Mapping[str, Callable[[str], bool]] | None = None
    ) -> None:
        self._accept = dict(accept or {})
        unknown = sorted(set(self._accept) - set(patterns))
        if unknown:
            raise ValueError(f"accept: no pattern called {', '.join(unknown)}")
        self._patterns: dict[str, re.Pattern[str]] = {}
        for name, pattern in patterns.items():
            try:
                self._patterns[name] = re.compile(pattern)
            except re.error as exc:
                raise ValueError(f"pattern {name!r}: {exc}") from exc

    def __call__(self, text: str, messages: tuple[Message, ...] = (), /) -> list[Finding]:
        """Return one finding per match, in order of place; none inside another."""
        found = [
            match.span()
            for name, pattern in self._patterns.items()
            for match in pattern.finditer(text)
            if match.group() and self._accept.get(name, _any)(match.group())
        ]
        kept: list[Finding] = []
        for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
            if not kept or end > kept[-1].span[1]:
                kept.append(Finding((start, end)))
        return kept


class DenylistCheck(PatternCheck):
    """Find words or phrases, whole and without regard to case; runs of spaces count as one.

    Args:
        phrases: what must not occur.

    Raises:
        ValueError: there is none, or one is blank.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        words = [phrase.split() for phrase in phrases]
        if not words or not all(words):
            raise ValueError("a denylist needs phrases, none of them blank")
        joined = "|".join(r"\s+".join(map(re.escape, phrase)) for phrase in sorted(words, key=len, reverse=True))
        super().__init__({"denylist": rf"(?i)(?<!\w)(?:{joined})(?!\w)"})


def _any(match: str) -> bool:
    return True


def _luhn(match: str) -> bool:
    """Tell whether a card number's check digit is right (ISO/IEC 7812)."""
    digits = [int(d) for d in match if d.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0


def _iban(match: str) -> bool:
    """Tell whether an account number's check digits are right (ISO 13616, mod 97)."""
    packed = re.sub(r"\s", "", match).upper()
    number = "".join(str(int(c, 36)) for c in packed[4:] + packed[:4])
    return 15 <= len(packed) <= 34 and int(number) % 97 == 1


PII: dict[str, str] = {
    "email": r"(?i)[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}",
    "card": r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)",
    "iban": r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])",
    "ssn": r"(?<!\d)(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?!\d)",
    "phone": r"(?<![\w+])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{3,4}[ .-]?\d{3,4}(?!\w)",
    "ipv4": r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])",
}


def pii_check(*kinds: str) -> PatternCheck:
    """Return a check for personal data with a fixed form: email, card, iban, ssn, phone, ipv4.

    Names and addresses have no form; `csrm_guard_adapters.presidio` finds more.

    Args:
        kinds: of `PII`; none given: all.

    Raises:
        ValueError: a kind is not one of them.
    """
    unknown = sorted(set(kinds) - set(PII))
    if unknown:
        raise ValueError(f"no kind {', '.join(unknown)}; there are {', '.join(PII)}")
    wanted = {name: PII[name] for name in (kinds or PII)}
    accept = {"card": _luhn, "iban": _iban}
    return PatternCheck(wanted, accept={name: test for name, test in accept.items() if name in wanted})
