"""Score a JSONL file row by row into another one: same order, resumable, errors as rows."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from csrm_guard.decision import strongest
from csrm_guard.errors import CsrmGuardError, RowError
from csrm_guard.guard import Guard
from csrm_guard.model import RewardModel
from csrm_guard.policy import Policy
from csrm_guard.rows import Row, parse_object, parse_row, read_lines, views
from csrm_guard.verdict import RuleResult, Verdict

__all__ = ["BulkReport", "count_lines", "score_file", "score_row", "worst"]

Line: TypeAlias = tuple[int, str]
_GUARDS = 256
_AHEAD = 16
_HEAD = b'{"id": '  # how each line of results begins


@dataclass(frozen=True, slots=True)
class BulkReport:
    """What a bulk run did: rows scored now, rows found done, rows that are errors now."""

    scored: int
    resumed: int
    errors: int


def score_file(
    source: Path,
    target: Path,
    model: RewardModel,
    *,
    policy: Policy | None = None,
    workers: int = 1,
    progress: Callable[[int], None] = lambda rows: None,
) -> BulkReport:
    """Score every row of `source` into `target`, one row per row in the same order.

    A `target` that is there is taken for an interrupted run: its whole lines are kept, if their
    ids are those of `source`, and the rest is scored.

    Args:
        source: .jsonl or .jsonl.gz in the format of `csrm_guard.rows`.
        target: .jsonl; appended to.
        model: what scores.
        policy: judges the rows that bring no policy of their own.
        workers: rows at a time; the model serves them from as many threads.
        progress: called with how many rows were finished since the last call.

    Raises:
        RowError: `source` cannot be read, or `target` belongs to another file.
    """
    done = _keep_whole_lines(source, target)
    progress(done)
    guards = _Guards(model, policy)
    scored = errors = 0
    with _open(target) as out:
        lines = islice(read_lines(source), done, None)
        for result in _in_order(lambda numbered: _score_line(*numbered, guards, source), lines, workers):
            # One write a row: an interruption leaves whole lines, or one torn line at the end.
            out.write(json.dumps(result) + "\n")
            errors += "error" in result
            scored += 1
            progress(1)
    return BulkReport(scored, done, errors)


def _in_order(work: Callable[[Line], dict[str, Any]], lines: Iterator[Line], workers: int) -> Iterator[dict[str, Any]]:
    """Yield the results of lines in their order; no more lines are read ahead than keep the workers busy."""
    if workers == 1:
        yield from map(work, lines)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="csrm-guard-bulk")
    try:
        ahead = deque(pool.submit(work, line) for line in islice(lines, workers * _AHEAD))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(work, line) for line in islice(lines, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def count_lines(source: Path) -> int:
    """Return how many rows a file has, for a progress bar."""
    return sum(1 for _ in read_lines(source))


def score_row(guard: Guard, row: Row) -> Verdict:
    """Return the verdict on a row; over several assistant turns, the worst of each rule."""
    verdicts = guard.score(views(row.messages, row.scope), row.stage)
    return worst(verdicts)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return one verdict for several turns: each rule at its highest q, the strongest action."""
    lowest = min(verdicts, key=lambda v: v.p_safe)
    if len(verdicts) == 1:
        return lowest
    best: dict[str, RuleResult] = {}
    for verdict in verdicts:
        for rule in verdict.rules:
            if rule.id not in best or rule.q > best[rule.id].q:
                best[rule.id] = rule
    action = strongest([v.action for v in verdicts if v.action])
    coverage = replace(
        lowest.coverage,
        windows=sum(v.coverage.windows for v in verdicts),
        judged_tokens=sum(v.coverage.judged_tokens for v in verdicts),
    )
    return replace(
        lowest,
        allowed=all(v.allowed for v in verdicts),
        action=action,
        rules=tuple(sorted(best.values(), key=lambda r: -r.q)),
        degraded=any(v.degraded for v in verdicts),
        error=next((v.error for v in verdicts if v.error), None),
        coverage=coverage,
    )


class _Guards:
    """Guards by policy hash, the least recently used dropped first."""

    def __init__(self, model: RewardModel, default: Policy | None) -> None:
        self._model = model
        self._default = Guard(default, model) if default else None
        self._guards: OrderedDict[str, Guard] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, row: Row, where: str) -> Guard:
        if row.policy is None:
            if self._default is None:
                raise RowError(f"{where}: the row has no policy; give it one, or pass --policy")
            return self._default
        key = row.policy.hash
        with self._lock:
            if key not in self._guards:
                self._guards[key] = Guard(row.policy, self._model)
                if len(self._guards) > _GUARDS:
                    self._guards.popitem(last=False)
            self._guards.move_to_end(key)
            return self._guards[key]


def _score_line(number: int, line: str, guards: _Guards, source: Path) -> dict[str, Any]:
    where = f"{source}:{number}"
    try:
        row = parse_row(parse_object(line, where), where)
        return _result(guards.of(row, where), row)
    except CsrmGuardError as exc:
        return {"id": _row_id(line, where), "error": f"{type(exc).__name__}: {exc}"}


def _result(guard: Guard, row: Row) -> dict[str, Any]:
    verdict = score_row(guard, row)
    if verdict.degraded:
        return {"id": row.id, "error": verdict.error, "allowed": verdict.allowed}
    return {
        "id": row.id,
        "p_safe": verdict.p_safe,
        "reward": verdict.reward,
        "allowed": verdict.allowed,
        "rules": {rule.id: rule.q for rule in verdict.rules},
        "windows": verdict.coverage.windows,
        "model": verdict.model,
        "policy_hash": verdict.policy_hash,
    }


def _row_id(line: str, where: str) -> str:
    """Return the id that the result of a line carries: its own, or else its place."""
    try:
        return str(parse_object(line, where).get("id", where))
    except RowError:
        return where


def _open(target: Path) -> TextIO:
    try:
        return target.open("a", encoding="utf-8")
    except OSError as exc:
        raise RowError(f"{target}: cannot be written: {exc.strerror}") from exc


def _result_id(line: bytes) -> object:
    """Return the id of a line of results; None: it is not one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found.get("id") if isinstance(found, dict) else None


def _keep_whole_lines(source: Path, target: Path) -> int:
    """Cut a torn last line off `target` and return how many rows it has of `source`."""
    if not target.is_file():
        return 0
    with target.open("rb+") as stream:
        kept = 0
        count = 0
        rows = read_lines(source)
        for done in stream:
            if not done.endswith(b"\n") and done[: len(_HEAD)] == _HEAD[: len(done)]:
                break
            number, line = next(rows, (0, ""))
            if not line or _result_id(done) != _row_id(line, f"{source}:{number}"):
                raise RowError(f"{target}: row {count + 1} is not of {source}; give another output file")
            kept += len(done)
            count += 1
        stream.truncate(kept)
    return count
