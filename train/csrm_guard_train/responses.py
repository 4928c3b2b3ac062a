"""Response pairs as groups: of two answers to one prompt, the rejected one breaks a harm rule more (paper 3.3).

Only the order is taught: a preference does not say that either answer is safe or unsafe.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from csrm_guard.errors import MessageError, RowError
from csrm_guard.messages import parse_messages
from csrm_guard.rows import read_jsonl
from csrm_guard_train.groups import Example, Group, LabelledRule, Order
from csrm_guard_train.public import HARMFUL

__all__ = ["RESPONSE_FILES", "read_responses"]

# file -> (licence, most pairs used).
RESPONSE_FILES: dict[str, tuple[str, int]] = {
    "hh_harmless_test_pairs": ("MIT", 1_500),
    "configurable_safety_tuning_pairs": ("MIT", 500),
}
# Of pairs that tune to a system prompt, those that ask for harmless answers; the others turn the same pairs round.
_CRITERIA = ("harmless", "harmlessness")
_TURNED = "uncensored"
# Longer answers than this, in characters, would be read in windows, whose largest score has no order.
_LONGEST = 1_200
# In this set what is wrong with an answer shows from its beginning, so a longer one is cut after a sentence.
_CUT = "configurable_safety_tuning_pairs"


def read_responses(folder: Path, seed: int) -> list[Group]:
    """Return a group of two examples per pair of the known files that the folder holds.

    Args:
        folder: holds `NAME.jsonl.gz` or `NAME.jsonl` files of rows with messages, chosen, rejected.
        seed: decides the wording of the harm rule.

    Raises:
        RowError: a row without `chosen` or `rejected`; names file and line.
    """
    groups: list[Group] = []
    for name, (_, most) in RESPONSE_FILES.items():
        rng = random.Random(f"{seed}:{name}")
        for path in sorted(folder.glob(f"{name}.jsonl*"))[:1]:
            groups += [group for group, _ in zip(_groups(path, name, rng), range(most), strict=False)]
    return groups


def _groups(path: Path, name: str, rng: random.Random) -> Iterator[Group]:
    for line, row in read_jsonl(path):
        missing = [key for key in ("id", "messages", "chosen", "rejected") if not row.get(key)]
        if missing:
            raise RowError(f"{path}: line {line}: a response pair needs {', '.join(missing)}")
        if name == _CUT:
            row = {**row, "chosen": _beginning(row["chosen"]), "rejected": _beginning(row["rejected"])}
        if max(len(row["chosen"]), len(row["rejected"])) > _LONGEST or not _asks_for_harmless(row):
            continue
        # An unreadable conversation is skipped as in the other public sets: they are full of them.
        try:
            yield _group(row, name, rng)
        except MessageError:
            continue


def _beginning(text: str) -> str:
    """Return as many whole sentences as are short enough; all of it if there is no such place."""
    if len(text) <= _LONGEST:
        return text
    end = text.rfind(". ", 0, _LONGEST)
    return text[: end + 1] if end > 0 else text


def _asks_for_harmless(row: dict[str, Any]) -> bool:
    criterion = (row.get("labels") or {}).get("criterion", _CRITERIA[0])
    turned = any(m.get("role") == "system" and _TURNED in m.get("content", "") for m in row["messages"])
    return criterion in _CRITERIA and not turned


def _group(row: dict[str, Any], name: str, rng: random.Random) -> Group:
    origin = f"{name}/{row['id']}"
    rule = LabelledRule(rng.choice(HARMFUL), False, f"{origin}/harm", (), 0.0)
    before = [message for message in row["messages"] if message.get("role") != "system"]
    examples = [
        Example((parse_messages([*before, {"role": "assistant", "content": text}]),), (rule,))
        for text in (row["rejected"], row["chosen"])
    ]
    return Group(origin, tuple(examples), (Order((0, 0), (1, 0)),))
