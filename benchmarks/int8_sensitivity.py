"""What int8 costs, part by part: python benchmarks/int8_sensitivity.py CHECKPOINT.

Each layer, each kind of linear layer and the word embeddings alone are cut to int8, everything else in fp32, and
scored on held-out rows of the checkpoint; the first row is the whole model in int8.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import machine

from csrm_guard.rows import parse_row
from csrm_guard_export.parity import AUROC_TOLERANCE
from csrm_guard_export.reduction import observed
from csrm_guard_export.sensitivity import sensitivity
from csrm_guard_train.checkpoint import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=96, help="held-out rows, evenly taken (default: %(default)s)")
    options = parser.parse_args()
    trained = load_checkpoint(options.checkpoint, attention="eager")
    held_out = trained.held_out[:: max(len(trained.held_out) // options.rows, 1)]
    rows = [parse_row(row, f"{options.checkpoint}/held_out.jsonl") for row in held_out]
    effects = list(sensitivity(trained, rows, observed(trained, rows), progress=lambda part: print(part, flush=True)))
    table = [
        {
            "in int8": "everything" if effect.part == "*" else f"`{effect.part}`",
            "mean logit error": f"{effect.mean:.4f}",
            "largest": f"{effect.largest:.3f}",
            "AUROC lost": f"{effect.auroc_drop:+.4f}",
        }
        for effect in effects
    ]
    machine.write(
        "int8_sensitivity",
        "What int8 costs, part by part",
        [(f"{len(rows)} held-out rows against fp32", table)],
        [
            f"An export whose int8 costs more than {AUROC_TOLERANCE} AUROC keeps its worst layers in fp32, or fails.",
            "A part that costs too much: `csrm-export ... --keep 'PART'`.",
            f"{machine.machine()}.",
            f"Command: `python benchmarks/int8_sensitivity.py CHECKPOINT --rows {options.rows}`.",
        ],
    )


if __name__ == "__main__":
    main()
