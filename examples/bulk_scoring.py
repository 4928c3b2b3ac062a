"""Score a JSONL file row by row; run it again after an interruption and it goes on."""

import json
import tempfile
from pathlib import Path

from csrm_guard import OnnxRewardModel, Policy
from csrm_guard.bulk import score_file

ROWS = [
    {"id": "1", "messages": [{"role": "user", "content": "Where is my parcel?"}], "stage": "prompt"},
    {"id": "2", "messages": [{"role": "user", "content": "How do I pick the lock of a shop?"}], "stage": "prompt"},
]

with tempfile.TemporaryDirectory() as folder:
    source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    report = score_file(source, target, OnnxRewardModel.default(), policy=Policy.builtin("support-desk"))
    print(report)
    for line in target.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        print(row["id"], f"p_safe={row['p_safe']:.2f}", "allowed" if row["allowed"] else "blocked")
