"""Order of the target rule's q within the minimal pairs of authored_dev: python benchmarks/pairs.py."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from csrm_guard import OnnxRewardModel
from csrm_guard.rows import parse_row, read_jsonl
from csrm_guard_train.evaluation import score_rows

SOURCE = Path(__file__).resolve().parents[1] / "train" / "data" / "dev" / "authored_dev.jsonl.gz"
ORDERS = [("violating", "compliant"), ("violating", "lenient"), ("strict", "compliant")]


def main() -> None:
    data = [row for _, row in read_jsonl(SOURCE)]
    scored = score_rows([parse_row(row, row["id"]) for row in data], OnnxRewardModel.default())
    pairs: dict[str, dict[str, float]] = defaultdict(dict)
    for row, s in zip(data, scored, strict=True):
        pairs[row["pair"]][row["variant"]] = s.rules["target"]
    for more, less in ORDERS:
        wins = [1.0 if v[more] > v[less] else 0.5 if v[more] == v[less] else 0.0 for v in pairs.values()]
        print(f"{more} above {less}: {sum(wins) / len(wins):.2f} of {len(wins)} pairs")


if __name__ == "__main__":
    main()
