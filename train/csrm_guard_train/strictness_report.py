"""Keep provably stricter guideline texts: csrm-strictness --data DIR [--public DIR] --out DIR.

Applies Algorithm 1 to the authored ladders and to public sets that name categories or grade severity. Writes
pairs.jsonl (kept pairs: texts, conversation ids and labels, no conversation) and report.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from csrm_guard.errors import CsrmGuardError
from csrm_guard_train.data import read_authored
from csrm_guard_train.labellers import (
    AnnotatedLabeller,
    CrossFittedLabeller,
    Labeller,
    Meanings,
    StrictnessError,
)
from csrm_guard_train.pairs import write_pairs
from csrm_guard_train.strictness import (
    Judged,
    Outcome,
    Settings,
    Source,
    strictness,
)
from csrm_guard_train.strictness_sources import authored_sources, public_sources

__all__ = ["Judges", "markdown", "two_judges"]

app = typer.Typer(add_completion=False)
_DATA = Path(__file__).resolve().parents[1] / "data" / "authored"


class Judges(str, Enum):
    """Which labellers must find a pair in order."""

    BOTH = "both"
    ANNOTATED = "annotated"
    TEXT = "text"


def two_judges(
    source: Source, meanings: Meanings, *, folds: int = 5, which: Judges = Judges.BOTH
) -> dict[str, Labeller]:
    """Return the labellers of the test: annotations (a text classifier where they are silent), and it alone.

    The first labels the conversations of a pair. Both must pass by default: the first says that enough people's
    labels are there, the second that the order can be told from conversations that it has not seen.
    """
    fitted = CrossFittedLabeller.fit(source.conversations, meanings, folds=folds)
    both: dict[str, Labeller] = {"annotated": AnnotatedLabeller(meanings, otherwise=fitted), "text": fitted}
    return both if which is Judges.BOTH else {which.value: both[which.value]}


_COLUMNS = (
    "category", "source", "subcategories", "proposed", "unsafe", "pool", "clusters", "covered", "agrees", "pairs",
    "kept", "too few (n)", "bound too low",
)  # fmt: skip


def _cells(outcome: Outcome) -> list[str]:
    source, coverage = outcome.source, outcome.coverage
    drops = Counter(_fate(row) for row in outcome.judged)
    return [
        source.category,
        source.origin,
        str(len(coverage.subcategories)),
        str(len(coverage.proposed)),
        str(sum(bool(c.shows) for c in source.conversations)),
        str(coverage.pool),
        str(outcome.clusters),
        "" if not coverage.pool else f"{coverage.share:.2f}",
        "" if not coverage.pool else " / ".join(f"{value:.2f}" for value in outcome.accuracy.values()),
        str(len(outcome.judged)),
        str(drops["kept"]),
        str(drops["small"]),
        str(drops["bound"]),
    ]


def _fate(row: Judged) -> str:
    if row.kept:
        return "kept"
    return "small" if any(test.small for test in row.tests.values()) else "bound"


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the report: a line per category, what the numbers mean, and a line per pair tested."""
    lines = ["# Strictness augmentation", "", _line(_COLUMNS), "|" + "---|" * len(_COLUMNS)]
    lines += [_line(_cells(outcome)) for outcome in outcomes]
    tested = sum(len(o.judged) for o in outcomes)
    kept = sum(row.kept for o in outcomes for row in o.judged)
    lines += [
        "",
        f"{kept} of {tested} pairs kept, as {sum(len(o.pairs) for o in outcomes)} pairs of texts.",
        "",
        _NOTES,
    ]
    lines += ["## Pairs", "", "`a>b`: the b, and the a, gravest subcategories are disallowed.", ""]
    lines += [_line(("pair", "k/n and bound by labeller", "outcome")), "|---|---|---|"]
    lines += [_line(_pair_cells(row)) for outcome in outcomes for row in outcome.judged]
    return "\n".join(lines) + "\n"


_NOTES = """\
- A pair is kept if, with every labeller, the lower bound of Pr[unsafe under strict | unsafe under lenient] exceeds
  the level. *too few (n)*: with some labeller n is so small that no result could pass; *bound too low*: n sufficed.
- *pool*: distinct conversations, drawn from the *unsafe*; *clusters*: those of them that share no turn. The test counts
  conversations as if independent, each once over all wordings, and corrects for no multiple testing, as the paper.
  Where clusters are far fewer than the pool, the bound claims too much: `--independent` takes one of each cluster.
- *annotated* is monotone by construction where annotations decide: that test asks only for enough data. *text* is a
  classifier that never saw the conversation. Neither reads the wording: they know what it was written to disallow.
- *agrees*: how often each labeller says what the annotation says, where it says anything. Where unlisted categories
  are unknown (sets that name categories) that is recall alone.
"""


def _pair_cells(row: Judged) -> tuple[str, str, str]:
    numbers = (f"{name} {test.k}/{test.n} {test.bound:.3f}" for name, test in row.tests.items())
    reasons = (f"{name}: {test.reason}" for name, test in row.tests.items() if not test.kept)
    return row.candidate.id, "; ".join(numbers), next(reasons, "kept")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(*_COLUMNS, title="strictness augmentation")
    for outcome in outcomes:
        table.add_row(*_cells(outcome))
    return table


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="Folder that gets pairs.jsonl and report.md.")],
    data: Annotated[Path, typer.Option(help="Folder of authored sets.")] = _DATA,
    public: Annotated[Path | None, typer.Option(help="Folder of normalised public sets, optional.")] = None,
    cap: Annotated[int, typer.Option(min=1, help="Most conversations of a category's pool.")] = 200,
    wordings: Annotated[int, typer.Option(min=1, max=6, help="Wordings per guideline of a public category.")] = 1,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the text classifier.")] = 5,
    independent: Annotated[bool, typer.Option(help="Take one conversation only of those that share a turn.")] = False,
    labeller: Annotated[Judges, typer.Option(help="Who must find a pair in order.")] = Judges.BOTH,
    seed: Annotated[int, typer.Option(help="Of pools and wordings.")] = 0,
) -> None:
    """Test guideline pairs category by category; write those kept and say why others were dropped."""
    try:
        sources = authored_sources(read_authored(data))
        sources += public_sources(public, seed=seed, wordings=wordings) if public else []
        settings = Settings(cap=cap, seed=seed, independent=independent)
        judges = partial(two_judges, folds=folds, which=labeller)
        outcomes = [strictness(source, judges, settings) for source in sources]
    except (CsrmGuardError, StrictnessError) as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    out.mkdir(parents=True, exist_ok=True)
    write_pairs(out / "pairs.jsonl", (pair for outcome in outcomes for pair in outcome.pairs))
    (out / "report.md").write_text(markdown(outcomes), encoding="utf-8")
    Console(width=200).print(_table(outcomes))
    typer.echo(f"{out / 'pairs.jsonl'}, {out / 'report.md'}", err=True)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
