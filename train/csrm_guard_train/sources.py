"""The paper's public sets by their hub names, as normalised rows: csrm-sources NAME --split S --out FILE.

A row is what `public.py` and `responses.py` read (format: train/data/README.md). Columns were taken from the
dataset cards; a set whose columns have changed is an error that names row and column. Sets under a
non-commercial licence, and benchmarks, are for evaluation only: asking to train on them is an error.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from csrm_guard.errors import CsrmGuardError, RowError, RuntimeMissing

__all__ = ["SOURCES", "Source", "Use", "convert", "load"]

app = typer.Typer(add_completion=False)
Row: TypeAlias = dict[str, Any]


class Use(str, Enum):
    """What rows are wanted for."""

    train = "train"
    evaluation = "evaluation"


@dataclass(frozen=True, slots=True)
class Source:
    """A public set.

    Attributes:
        hub: its name on the Hugging Face hub.
        licence: as its card states it; `trainable` follows from it.
        trainable: whether a shipped model may train on it.
        read: turns one of its rows into normalised ones.
        subset: its configuration on the hub, if it has several.
    """

    hub: str
    licence: str
    trainable: bool
    read: Callable[[Mapping[str, Any], str], Iterator[Row]]
    subset: str | None = None


def _column(row: Mapping[str, Any], name: str, where: str) -> Any:  # noqa: ANN401  # as the set has it
    if name not in row:
        raise RowError(f"{where}: no column {name!r}; the set has changed, its columns are {', '.join(sorted(row))}")
    return row[name]


def _row(
    where: str, messages: list[tuple[str, str]], *, harmful: bool | None, target: str, categories: Iterable[str] = ()
) -> Row:
    return {
        "id": where,
        "source": where.split("#")[0],
        "messages": [{"role": role, "content": text} for role, text in messages],
        "labels": {"harmful": harmful, "target": target, "categories": sorted(categories), "refusal": None,
                   "severity": None},
        "policy": None,
        "rules": None,
    }  # fmt: skip


def _beavertails(row: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Columns: prompt, response, category (name -> bool), is_safe."""
    said = [("user", _column(row, "prompt", where)), ("assistant", _column(row, "response", where))]
    shown = [name for name, broken in _column(row, "category", where).items() if broken]
    yield _row(where, said, harmful=not _column(row, "is_safe", where), target="response", categories=shown)


def _wildguard(row: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Columns: prompt, prompt_harm_label, response, response_harm_label, response_refusal_label, subcategory."""
    prompt = _column(row, "prompt", where)
    category = [value] if (value := row.get("subcategory")) and value != "benign" else []
    label = _column(row, "prompt_harm_label", where)
    if label is not None:
        yield _row(f"{where}-prompt", [("user", prompt)], harmful=label == "harmful", target="prompt",
                   categories=category)  # fmt: skip
    response, label = _column(row, "response", where), _column(row, "response_harm_label", where)
    if response and label is not None:
        found = _row(f"{where}-response", [("user", prompt), ("assistant", response)], harmful=label == "harmful",
                     target="response", categories=category)  # fmt: skip
        refusal = row.get("response_refusal_label")
        found["labels"]["refusal"] = None if refusal is None else refusal == "refusal"
        yield found


def _aegis(row: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Columns: prompt, response, prompt_label, response_label, violated_categories (comma-separated)."""
    prompt = _column(row, "prompt", where)
    named = [part.strip() for part in (_column(row, "violated_categories", where) or "").split(",") if part.strip()]
    # Personal data was taken out of some rows: what is left says nothing.
    if prompt == "REDACTED":
        return
    label = _column(row, "prompt_label", where)
    if label is not None:
        yield _row(f"{where}-prompt", [("user", prompt)], harmful=label == "unsafe", target="prompt",
                   categories=named)  # fmt: skip
    response, label = _column(row, "response", where), _column(row, "response_label", where)
    if response and label is not None:
        yield _row(f"{where}-response", [("user", prompt), ("assistant", response)], harmful=label == "unsafe",
                   target="response", categories=named)  # fmt: skip


def _safe_rlhf(row: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Columns: prompt, response_0/1, is_response_0/1_safe, response_0/1_harm_category, safer_response_id."""
    prompt = _column(row, "prompt", where)
    for side in ("0", "1"):
        said = [("user", prompt), ("assistant", _column(row, f"response_{side}", where))]
        shown = [name for name, broken in (row.get(f"response_{side}_harm_category") or {}).items() if broken]
        safe = _column(row, f"is_response_{side}_safe", where)
        yield _row(f"{where}-{side}", said, harmful=not safe, target="response", categories=shown)
    safer = str(_column(row, "safer_response_id", where))
    yield _pair(where, [("user", prompt)], row[f"response_{safer}"], row[f"response_{'10'[int(safer)]}"])


def _pair(where: str, messages: list[tuple[str, str]], chosen: str, rejected: str) -> Row:
    found = _row(f"{where}-pair", messages, harmful=None, target="response")
    return {**found, "chosen": chosen, "rejected": rejected}


def _cosalign(row: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Columns: system_prompt (the configuration), prompt, chosen_response, rejected_response."""
    found = _pair(
        where,
        [("user", _column(row, "prompt", where))],
        _column(row, "chosen_response", where),
        _column(row, "rejected_response", where),
    )
    yield {**found, "policy": _column(row, "system_prompt", where)}


def _cosapien(row: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Columns: scenario (the configuration), prompt, type; there are no responses and no labels of them."""
    found = _row(where, [("user", _column(row, "prompt", where))], harmful=None, target="prompt")
    yield {**found, "policy": _column(row, "scenario", where), "meta": {"type": _column(row, "type", where)}}


def _dynabench(row: Mapping[str, Any], where: str) -> Iterator[Row]:
    """Columns: policy (numbered rules), transcript (`User:` and `Agent:` turns), label (PASS or FAIL)."""
    label = _column(row, "label", where)
    if label not in ("PASS", "FAIL"):
        raise RowError(f"{where}: label {label!r}; expected PASS or FAIL")
    policy = _column(row, "policy", where)
    found = _row(where, _turns(_column(row, "transcript", where), where), harmful=label == "FAIL", target="response")
    texts = [part.strip() for part in re.split(r"(?m)^\s*\d+[.)]\s+", policy) if part.strip()]
    rules = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts, 1)]
    yield {**found, "policy": policy, "rules": rules, "meta": {"scope": "any assistant turn"}}


def _turns(transcript: str, where: str) -> list[tuple[str, str]]:
    """Return (role, text) of a transcript whose turns open with `User:` or `Agent:` at a line's start."""
    parts = re.split(r"(?mi)^\W{0,3}(user|agent|assistant)\W{0,3}:\W{0,2}\s", transcript)
    if len(parts) < 3:
        raise RowError(f"{where}: no `User:` or `Agent:` turn in the transcript")
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [("user" if who.lower() == "user" else "assistant", text.strip()) for who, text in pairs]


SOURCES: dict[str, Source] = {
    "beavertails": Source("PKU-Alignment/BeaverTails", "CC-BY-NC-4.0", False, _beavertails),
    "wildguardmix": Source("allenai/wildguardmix", "ODC-BY", True, _wildguard, "wildguardtrain"),
    "wildguardtest": Source("allenai/wildguardmix", "ODC-BY", False, _wildguard, "wildguardtest"),
    "aegis-2": Source("nvidia/Aegis-AI-Content-Safety-Dataset-2.0", "CC-BY-4.0", True, _aegis),
    "pku-saferlhf": Source("PKU-Alignment/PKU-SafeRLHF", "CC-BY-NC-4.0", False, _safe_rlhf),
    "cosalign-train": Source("microsoft/CoSAlign-Train", "other (from BeaverTails: CC-BY-NC-4.0)", False, _cosalign),
    "cosapien": Source("microsoft/CoSApien", "CDLA-Permissive-2.0, a benchmark", False, _cosapien),
    "dynabench": Source("tomg-group-umd/DynaBench", "see its card, a benchmark", False, _dynabench, "DynaBench"),
}


def convert(name: str, rows: Iterable[Mapping[str, Any]], *, split: str, use: Use = Use.evaluation) -> Iterator[Row]:
    """Yield the normalised rows of a set's own rows.

    Args:
        name: a key of `SOURCES`.
        rows: as the hub gives them.
        split: for the ids.
        use: `train` is refused for sets that a shipped model may not train on.

    Raises:
        RowError: unknown set, a set that may not be trained on, or a missing column; names the row.
    """
    source = SOURCES.get(name)
    if source is None:
        raise RowError(f"unknown set {name!r}; there are {', '.join(SOURCES)}")
    if use is Use.train and not source.trainable:
        raise RowError(
            f"{source.hub} ({source.licence}) is for evaluation only; no model that is shipped may train on it"
        )
    for i, row in enumerate(rows):
        yield from source.read(row, f"{name}/{split}#{i}")


def load(name: str, *, split: str, use: Use = Use.evaluation) -> Iterator[Row]:
    """Yield the normalised rows of a set from the hub, one by one.

    Raises:
        RowError: see `convert`; or the hub has no such set or split, or does not let us in.
        RuntimeMissing: `datasets` is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError as exc:
        raise RuntimeMissing("reading the hub needs datasets: pip install 'csrm-guard[hub]'") from exc
    if name not in SOURCES:
        raise RowError(f"unknown set {name!r}; there are {', '.join(SOURCES)}")
    source = SOURCES[name]
    try:
        rows = load_dataset(source.hub, source.subset, split=split)
    except Exception as exc:
        # The library raises its own, the hub's and the network's errors alike.
        raise RowError(f"{source.hub} ({split}): {exc}; log in if it is gated, and check the split") from exc
    yield from convert(name, rows, split=split, use=use)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(SOURCES)}.")],
    split: Annotated[str, typer.Option(help="As the hub names it, such as train or 30k_test.")],
    out: Annotated[Path, typer.Option(help="A .jsonl.gz file; written in one step.")],
    use: Annotated[Use, typer.Option(help="What the rows are for.")] = Use.evaluation,
    most: Annotated[int | None, typer.Option(min=1, help="At most so many normalised rows.")] = None,
) -> None:
    """Write a public set as normalised rows."""
    fresh = out.with_name(out.name + ".new")
    count = 0
    try:
        with gzip.open(fresh, "wt", encoding="utf-8") as target:
            for row in islice(load(name, split=split, use=use), most):
                target.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    except CsrmGuardError as exc:
        fresh.unlink(missing_ok=True)
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(2) from exc
    fresh.replace(out)
    typer.echo(f"{out}: {count} rows of {SOURCES[name].hub} ({SOURCES[name].licence})")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
