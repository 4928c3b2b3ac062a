"""The command line: csrm-guard check | score | policy | doctor | bench | version."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import csrm_guard
from csrm_guard.artifact import DEFAULT_ARTIFACT
from csrm_guard.bench import Bench
from csrm_guard.bulk import count_lines, score_file
from csrm_guard.doctor import self_test
from csrm_guard.errors import CsrmGuardError, MessageError
from csrm_guard.guard import Guard
from csrm_guard.messages import Stage
from csrm_guard.onnx_model import OnnxRewardModel
from csrm_guard.policy import BUILTINS, Policy
from csrm_guard.report import bench_tables, policy_table, verdict_panel

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Guardrails from a policy as data.")
policy_app = typer.Typer(no_args_is_help=True, help="Check, show and list policies.")
app.add_typer(policy_app, name="policy")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

PolicyOption = Annotated[str, typer.Option("--policy", "-p", help="A built-in name or a policy file.")]
ModelOption = Annotated[Path | None, typer.Option("--model", help="A model directory; default: the shipped one.")]


def _fail(error: object) -> NoReturn:
    err.print(f"[red]error:[/red] {escape(str(error))}")
    raise typer.Exit(2)


def _model(folder: Path | None) -> OnnxRewardModel:
    return OnnxRewardModel.load(folder) if folder else OnnxRewardModel.default()


@app.command()
def check(
    policy: PolicyOption,
    file: Annotated[str, typer.Argument(help="A JSON list of messages; - reads standard input.")] = "-",
    stage: Annotated[Stage | None, typer.Option(help="What the last message is; default: told from its role.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
    model: ModelOption = None,
) -> None:
    """Judge one conversation. Exit code: 0 allowed, 1 blocked, 2 error."""
    try:
        messages = _read_messages(file)
        guard = Guard(policy, _model(model))
        verdict = guard.check(messages, stage)
    except CsrmGuardError as exc:
        _fail(exc)
    if as_json:
        print(json.dumps(verdict.to_dict(), ensure_ascii=False))
    else:
        out.print(verdict_panel(verdict, guard.policy))
    if verdict.degraded and verdict.allowed:
        err.print("[yellow]warning:[/yellow] not scored; the policy's on_error lets it pass")
    raise typer.Exit(0 if verdict.allowed else 1)


@app.command()
def score(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl")],
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="For rows without a policy of their own.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Rows at a time.", show_default="one per core")] = 0,
    model: ModelOption = None,
) -> None:
    """Score every row of a file; run again to go on after an interruption. Exit code 2: some rows are errors."""
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _RateColumn())
    workers = workers or os.cpu_count() or 1
    try:
        rules = Policy.load(policy) if policy else None
        with Progress(*columns, console=err) as progress:
            bar = progress.add_task("rows", total=count_lines(source))
            # Rows side by side, each on one thread: no core waits for another within a row.
            loaded = OnnxRewardModel.load(model or DEFAULT_ARTIFACT, threads=1 if workers > 1 else None)
            report = score_file(
                source, target, loaded, policy=rules, workers=workers, progress=lambda n: progress.advance(bar, n)
            )
    except CsrmGuardError as exc:
        _fail(exc)
    err.print(f"{report.scored} rows scored, {report.resumed} already there, {report.errors} errors -> {target}")
    raise typer.Exit(2 if report.errors else 0)


@app.command()
def doctor(model: ModelOption = None) -> None:
    """Show versions, providers and the model, and prove that it tells a known pair apart."""
    table = Table(show_header=False)
    rows = [("csrm-guard", csrm_guard.__version__), ("python", f"{platform.python_version()} {platform.machine()}")]
    rows += [(name, _version(name)) for name in ("onnxruntime", "onnxruntime-gpu", "tokenizers", "pydantic", "numpy")]
    try:
        loaded = _model(model)
    except CsrmGuardError as exc:
        for row in rows:
            table.add_row(*row)
        out.print(table)
        _fail(exc)
    manifest = loaded.manifest
    rows += [
        ("providers", ", ".join(loaded.providers)),
        ("model", loaded.id),
        ("precision", f"{manifest.precision}, opset {manifest.opset}, template {manifest.template}"),
        ("graph sha256", manifest.files[manifest.graph]),
    ]
    found = self_test(loaded)
    rows.append(("self-test", found.describe()))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)
    if not found.passed:
        _fail("the model does not tell the known pair apart; reinstall csrm-guard or export the model again")


@app.command()
def bench(
    rounds: Annotated[int, typer.Option(min=3, help="Times that each cell is measured; its median is shown.")] = 10,
    model: ModelOption = None,
) -> None:
    """Measure this machine: one check by threads, many checks by workers; recommend settings."""
    try:
        measured = Bench.run(model or DEFAULT_ARTIFACT, rounds=rounds, cores=os.cpu_count() or 1)
    except CsrmGuardError as exc:
        _fail(exc)
    out.print(bench_tables(measured))


@app.command("version")
def show_version() -> None:
    """Print the version."""
    print(csrm_guard.__version__)


@policy_app.command("validate")
def policy_validate(files: Annotated[list[str], typer.Argument(metavar="POLICY...")]) -> None:
    """Check policies; exit code 2 if one is wrong."""
    wrong = 0
    for name in files:
        try:
            policy = Policy.load(name)
        except CsrmGuardError as exc:
            err.print(f"[red]error:[/red] {escape(str(exc))}")
            wrong += 1
        else:
            out.print(f"{escape(name)}: ok, {len(policy.rules)} rules, hash {policy.hash}")
    raise typer.Exit(2 if wrong else 0)


@policy_app.command("show")
def policy_show(policy: Annotated[str, typer.Argument(help="A built-in name or a policy file.")]) -> None:
    """Print a policy with everything that it extends."""
    try:
        out.print(policy_table(Policy.load(policy)))
    except CsrmGuardError as exc:
        _fail(exc)


@policy_app.command("schema")
def policy_schema() -> None:
    """Print the JSON Schema of policy files, for editors."""
    print(json.dumps(Policy.model_json_schema(), indent=2))


@policy_app.command("builtins")
def policy_builtins() -> None:
    """List the policies that come with the package."""
    table = Table("name", "rules", "setting")
    for name in BUILTINS:
        policy = Policy.builtin(name)
        table.add_row(name, str(len(policy.rules)), escape(policy.setting.strip()))
    out.print(table)


class _RateColumn(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:.1f} rows/s")


def _read_messages(file: str) -> list[dict[str, object]]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        found = json.loads(text)
    except OSError as exc:
        raise MessageError(f"{file}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise MessageError(f"{file}: not UTF-8; save the file as UTF-8") from exc
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"{file}: not JSON: {exc}") from exc
    if isinstance(found, dict) and isinstance(found.get("messages"), list):
        found = found["messages"]
    if not isinstance(found, list):
        raise MessageError(f"{file}: expected a JSON list of messages, found {type(found).__name__}")
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
