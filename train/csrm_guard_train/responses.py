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
RESPONSE_FILES: dict[str, tuple[str, int]] = {"hh_harmless_test_pairs": ("MIT", 1_500)}
# Longer answers than this, in characters, would be read in windows, whose largest score has no order.
_LONGEST = 1_200


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
        if max(len(row["chosen"]), len(row["rejected"])) > _LONGEST:
            continue
        # An unreadable conversation is skipped as in the other public sets: they are full of them.
        try:
            yield _group(row, name, rng)
        except MessageError:
            continue


def _group(row: dict[str, Any], name: str, rng: random.Random) -> Group:
    origin = f"{name}/{row['id']}"
    rule = LabelledRule(rng.choice(HARMFUL), False, f"{origin}/harm", (), 0.0)
    examples = [
        Example((parse_messages([*row["messages"], {"role": "assistant", "content": text}]),), (rule,))
        for text in (row["rejected"], row["chosen"])
    ]
    return Group(origin, tuple(examples), (Order((0, 0), (1, 0)),))
