"""Where a model fails: by a field of the rows, such as the kind of rule, and the worst rows in full."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from csrm_guard.rows import Row
from csrm_guard_train.metrics import decisions
from csrm_guard_train.probes import wins

__all__ = ["Failure", "by_field", "worst"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that the model got wrong.

    Attributes:
        id: of the row.
        label: `safe` or `unsafe`.
        p_unsafe: what the model said.
        rule: the rule that it found violated most, with its q.
        message: the judged message, the last one.
    """

    id: str
    label: str
    p_unsafe: float
    rule: str
    message: str


def by_field(rows: Sequence[Row], p: Mapping[str, float], values: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return, for each value of a field, counts, F1, AUROC and the order of its minimal pairs.

    Args:
        rows: labelled rows.
        p: row id to P(unsafe).
        values: row id to its value of the field; rows without one count under "".

    Returns:
        Value to the numbers of `metrics.decisions`, and `same_rule`: the share of its pairs
        `STEM-violating`, `STEM-compliant` in the right order (nan without pairs); largest group first.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[values.get(row.id, "")].append(row)
    found = {}
    for value, part in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        y = np.array([float(bool(row.label)) for row in part])
        stems = [row.id.removesuffix("violating") for row in part if row.id.endswith("-violating")]
        stems = [stem for stem in stems if stem + "compliant" in p]
        more = np.array([p[stem + "violating"] for stem in stems])
        less = np.array([p[stem + "compliant"] for stem in stems])
        numbers = decisions(y, np.array([p[row.id] for row in part]))
        found[value] = {**numbers, "same_rule": wins(more, less, rounds=1)[0]}
    return found


def worst(
    rows: Sequence[Row], p: Mapping[str, float], rules: Mapping[str, Mapping[str, float]], *, most: int = 20
) -> list[dict[str, str | float]]:
    """Return the rows whose P(unsafe) is farthest from their label, as objects for JSON.

    Args:
        rows: labelled rows.
        p: row id to P(unsafe).
        rules: row id to q by rule id.
        most: how many.
    """
    gaps = sorted(rows, key=lambda row: -abs(float(bool(row.label)) - p[row.id]))
    return [asdict(_failure(row, p[row.id], rules[row.id])) for row in gaps[:most]]


def _failure(row: Row, p: float, rules: Mapping[str, float]) -> Failure:
    texts = {rule.id: rule.text for rule in row.policy.rules} if row.policy else {}
    top = max(rules, key=lambda i: rules[i], default=None)
    rule = f"{texts.get(top, top)} (q {rules[top]:.2f})" if top is not None else ""
    return Failure(row.id, "unsafe" if row.label else "safe", p, rule, row.messages[-1].content)
