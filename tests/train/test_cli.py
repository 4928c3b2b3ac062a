import gzip
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csrm_guard_train.__main__ import app
from csrm_guard_train.data import Authored
from csrm_guard_train.evaluate import app as evaluate_app
from csrm_guard_train.pairs import Labelled, StrictPair, write_pairs
from tests.tiny import make_recipe

DEV = Path(__file__).resolve().parents[2] / "train" / "data" / "dev" / "transcripts_dev.jsonl.gz"


def test_a_bad_recipe_ends_with_code_2(tmp_path: Path):
    result = CliRunner().invoke(app, [str(make_recipe(tmp_path / "r.toml", sped=1))])
    assert result.exit_code == 2
    assert "sped" in result.output


@pytest.mark.slow
def test_a_run_trains_stops_and_goes_on(backbones: Path, authored_folder: Path, tmp_path: Path):
    recipe = make_recipe(tmp_path / "r.toml", epochs=0.2)
    args = [str(recipe), "--backbones", str(backbones), "--data", str(authored_folder), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, [*args, "--stop-after", "0"]).exit_code == 0
    assert (tmp_path / "run" / "checkpoint" / "resume.pt").is_file()
    assert CliRunner().invoke(app, args).exit_code == 0
    card = json.loads((tmp_path / "run" / "checkpoint" / "card.json").read_text())
    assert card["authored"]["files"]
    assert card["rows"]["items"] > 0


def write_pair(path: Path, conversation: str) -> Path:
    label = Labelled(conversation, strict=True, lenient=False, known=True)
    write_pairs(path, [StrictPair("p", "c", "No insults at all.", "No threats.", (label,), 0.96, 60, 60, "here")])
    return path


@pytest.mark.slow
def test_kept_pairs_are_trained_on(backbones: Path, authored_folder: Path, authored: Authored, tmp_path: Path):
    recipe = make_recipe(tmp_path / "r.toml", epochs=0.05)
    rung = authored.split(0.2, 0)[0].rungs[0].id
    args = [str(recipe), "--backbones", str(backbones), "--data", str(authored_folder), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, [*args, "--pairs", str(write_pair(tmp_path / "p", rung))]).exit_code == 0
    card = json.loads((tmp_path / "run" / "checkpoint" / "card.json").read_text())
    assert card["strict_pairs"]["groups"] == 1


def test_a_pair_on_an_unknown_conversation_is_refused(backbones: Path, authored_folder: Path, tmp_path: Path):
    args = [str(make_recipe(tmp_path / "r.toml")), "--backbones", str(backbones), "--data", str(authored_folder)]
    result = CliRunner().invoke(app, [*args, "--pairs", str(write_pair(tmp_path / "p", "nobody-1"))])
    assert result.exit_code == 2
    assert "nobody-1" in result.output


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten(backbones: Path, authored_folder: Path, tmp_path: Path):
    recipe = make_recipe(tmp_path / "r.toml", epochs=0.05)
    args = [str(recipe), "--backbones", str(backbones), "--data", str(authored_folder), "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, args).exit_code == 0
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert "finished" in result.output


@pytest.mark.slow
def test_evaluation_writes_numbers_and_a_table(tmp_path: Path):
    result = CliRunner().invoke(evaluate_app, [str(DEV), str(tmp_path), "--rounds", "20"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["real"]["n"] == 48
    assert "shuffled policy" in (tmp_path / "table.md").read_text()
    assert "TF-IDF of conversation and rules" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "report.html").read_text().count("<svg") == 4
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 48


def test_evaluation_probes_pairs_and_ladders(authored_folder: Path, tmp_path: Path):
    source = tmp_path / "in.jsonl"
    with gzip.open(DEV.with_name("authored_dev.jsonl.gz"), "rt", encoding="utf-8") as lines:
        source.write_text("".join(line for line, _ in zip(lines, range(8), strict=False)))
    args = [str(source), str(tmp_path / "out"), "--rounds", "20", "--data", str(few_rungs(authored_folder, tmp_path))]
    args += ["--by", "kind"]
    result = CliRunner().invoke(evaluate_app, args)
    assert result.exit_code == 0, result.output
    probes = json.loads((tmp_path / "out" / "metrics.json").read_text())["probes"]
    assert {"violating over compliant", "flips", "configurations", "contradiction", "ladders"} <= set(probes)
    assert probes["flips"]["n"] == 4
    assert "| prohibition | 4 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "report.html").read_text().count('class="text"') >= 8
    assert "| ladders | guidelines" in (tmp_path / "out" / "table.md").read_text()


def few_rungs(folder: Path, target: Path) -> Path:
    """Copy the sets with six rungs only, since each is scored under every configuration."""
    shutil.copytree(folder, target / "few")
    lines = (folder / "rungs.jsonl").read_text().splitlines(keepends=True)
    grave = [line for line in lines if json.loads(line)["level"] >= 4][:3]
    (target / "few" / "rungs.jsonl").write_text("".join(lines[:3] + grave))
    return target / "few"


def test_long_policies_are_cut_to_the_rules_that_match(tmp_path: Path):
    rules = [{"id": f"r{i}", "text": f"Never discuss {word}."} for i, word in enumerate(("tax", "tea", "tin"))]
    row = {"id": "1", "policy": {"rules": rules}, "messages": ["tea?", {"role": "assistant", "content": "Tea."}]}
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row | {"id": i, "label": i}) + "\n" for i in ("safe", "unsafe")))
    result = CliRunner().invoke(evaluate_app, [str(source), str(tmp_path / "out"), "--rounds", "5", "--most", "1"])
    assert result.exit_code == 0, result.output
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [list(row["rules"]) for row in scores] == [["r1"], ["r1"]]


def test_evaluation_of_unlabelled_rows_ends_with_code_2(tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "1", "policy": {"rules": [{"id": "a", "text": "b"}]}, "messages": ["hi"]}\n')
    result = CliRunner().invoke(evaluate_app, [str(source), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "label" in result.output
