"""Manners: openings put before messages at random, so that how careful a message sounds says nothing of its labels.

A group is left as it is where a rule might be about manners, form or length: there an opening could turn a label.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csrm_guard.documents import read_document
from csrm_guard.errors import RowError
from csrm_guard_train.groups import Example, Group

__all__ = ["Manners", "mannered"]

Lines = Annotated[tuple[str, ...], Field(min_length=1)]
# Stems and words of rules that an opening might break or keep.
_ABOUT_FORM = re.compile(
    r"\b(?:apolog\w*|sorry|begin\w*|start\w*|open(?:s|ing)?|greet\w*|hello|first (?:sentence|word|line|thing|person)|"
    r"(?:one|two|three|four|five|six|\d+) (?:\w+ )?(?:words|sentences?|lines?|characters|paragraphs?)|words|sentences?|"
    r"lengths?|short\w*|brief\w*|concise\w*|tone|style|polite\w*|friendl\w*|formal\w*|casual\w*|warm\w*|cheer\w*|"
    r"enthusias\w*|excite\w*|exclamation\w*|emojis?|slang|jok\w*|humou?r\w*|prais\w*|compliment\w*|flatter\w*|thank\w*|"
    r"directly|preamble|filler|small talk|refus\w*|declin\w*|hedg\w*|caveats?|disclaim\w*|promis\w*|guarantee\w*|"
    r"reassur\w*|polic\w*|guidelines?|instructions?|empath\w*|sympath\w*|acknowledg\w*|verbatim|exactly|nothing else|"
    r"format\w*|bullet\w*|capitals?|caps|rhym\w*|plain|pronouns?|i|we|us|feelings?|opinions?|question marks?)\b",
    re.IGNORECASE,
)


class Manners(BaseModel):
    """What may stand before a message without changing what it does.

    Attributes:
        careful: openings of somebody who minds the rules.
        eager: openings of somebody who does not seem to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    careful: Lines
    eager: Lines

    @classmethod
    def from_file(cls, path: Path) -> Manners:
        """Read the openings.

        Raises:
            DocumentError: unreadable.
            RowError: a key is unknown or missing, or a list empty; names the file and the place.
        """
        try:
            return cls.model_validate(read_document(path))
        except ValidationError as exc:
            places = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()]
            raise RowError("\n".join(places)) from exc


def mannered(group: Group, manners: Manners, rng: random.Random) -> Group:
    """Return the group with an opening, of either sort or none, before each last message, whatever its labels.

    Args:
        group: returned as it is if a rule may be about form, a message is not the assistant's, or an example shows
            several turns.
        manners: the openings.
        rng: decides which.
    """
    if not all(_free(example) for example in group.examples):
        return group
    return replace(group, examples=tuple(_opened(example, manners, rng) for example in group.examples))


def _free(example: Example) -> bool:
    """Tell whether an opening before the last message leaves all labels as they are."""
    if len(example.views) != 1:
        return False
    last = example.views[0][-1]
    # A tool call stands first for a reason.
    if last.role != "assistant" or not last.content[:1].isalpha():
        return False
    return not any(
        rule.origin.startswith("checkable") or _ABOUT_FORM.search(" ".join((rule.text, *rule.permits)))
        for rule in example.rules
        if rule.weight > 0
    )


def _opened(example: Example, manners: Manners, rng: random.Random) -> Example:
    lines = rng.choice((manners.careful, manners.eager, ()))
    if not lines:
        return example
    *before, last = example.views[0]
    return replace(example, views=((*before, replace(last, content=f"{rng.choice(lines)} {last.content}")),))
