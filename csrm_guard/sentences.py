"""Where sentences end: the places at which text can be judged, released or cut."""

from __future__ import annotations

import re

__all__ = ["sentence_end", "sentence_spans"]

# A full stop inside a number or an abbreviation is followed by no space; Chinese and Japanese marks need none.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n+")


def sentence_end(text: str, start: int = 0) -> int | None:
    """Return the place after the last sentence that surely ended at or after `start`; None: none did."""
    last = None
    for match in _END.finditer(text, start):
        last = match.end()
    return last


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the sentences [start, end), which together are the whole text."""
    ends = [match.end() for match in _END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return [(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]
