"""Verdicts and policies as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from csrm_guard.bench import Bench
from csrm_guard.policy import Policy
from csrm_guard.verdict import Verdict

__all__ = ["bench_tables", "policy_table", "verdict_panel"]

_SHOWN = 5


def verdict_panel(verdict: Verdict, policy: Policy) -> RenderableType:
    """Return a verdict with its most violated rules, for people."""
    colour = "green" if verdict.allowed else "red"
    word = "ALLOWED" if verdict.allowed else f"NOT ALLOWED: {verdict.action}"
    if verdict.degraded:
        return Panel(escape(verdict.summary()), title=word, border_style=colour)
    texts = {rule.id: rule.text for rule in policy.rules}
    table = Table(box=None, padding=(0, 1))
    for name in ("rule", "q", "", "text"):
        table.add_column(name)
    for result in verdict.rules[:_SHOWN]:
        mark = "[red]violated[/red]" if result.violated else ""
        table.add_row(result.id, f"{result.q:.2f}", mark, escape(texts.get(result.id, "")))
    more = len(verdict.rules) - _SHOWN
    coverage = verdict.coverage
    notes = [f"p_safe {verdict.p_safe:.2f}, reward {verdict.reward:+.2f}, {coverage.windows} window(s)"]
    if coverage.context_read < coverage.context_tokens:
        notes.append(f"context read: {coverage.context_read} of {coverage.context_tokens} tokens")
    if coverage.unread:
        notes.append(f"not read: {', '.join(coverage.unread)}")
    if more > 0:
        notes.append(f"{more} more rule(s), each q <= {verdict.rules[_SHOWN].q:.2f}")
    return Panel(Group(escape("; ".join(notes)), table), title=word, border_style=colour)


def policy_table(policy: Policy) -> RenderableType:
    """Return a policy as a table."""
    table = Table("id", "stance", "severity", "stages", "threshold", "action", "on_error", "text", show_lines=True)
    for rule in policy.rules:
        threshold = f"fpr {rule.fpr}" if rule.fpr is not None else str(rule.threshold or policy.defaults.threshold)
        table.add_row(
            rule.id,
            rule.stance,
            rule.severity,
            " ".join(rule.stages),
            threshold,
            policy.action_of(rule),
            policy.on_error_of(rule),
            escape(rule.text),
        )
    head = f"{policy.name} {policy.version}  hash {policy.hash}\n{policy.setting.strip()}"
    return Group(escape(head), table)


def bench_tables(bench: Bench) -> RenderableType:
    """Return what was measured on this machine, and what to set."""
    threads = sorted({cell.threads for cell in bench.latencies})
    table = Table("rules", "tokens", *(f"{n} thread(s), ms" for n in threads), title="One check")
    for rules, tokens in dict.fromkeys((c.rules, c.tokens) for c in bench.latencies):
        cells = {c.threads: c.ms for c in bench.latencies if (c.rules, c.tokens) == (rules, tokens)}
        table.add_row(str(rules), str(tokens), *(f"{cells[n]:.1f}" for n in threads))
    many = Table("at a time", "threads each", "checks/s", title="Many checks: 8 rules, 128 tokens")
    for cell in bench.throughputs:
        many.add_row(str(cell.workers), str(cell.threads), f"{cell.per_second:.1f}")
    best = bench.best
    advice = (
        f"One call at a time: OnnxRewardModel.load(threads={bench.threads}). Many: {best.workers} worker(s) of "
        f"{best.threads} thread(s): Scheduler(model, narrow, workers={best.workers}), csrm-guard score "
        f"--workers {best.workers}."
    )
    before, after = bench.probe
    probe = f"{bench.model}, {bench.cores} cores; fp32 product {before:.0f} GFLOP/s before, {after:.0f} after"
    return Group(table, many, advice, escape(probe))
