import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csrm_guard.errors import RowError
from csrm_guard_train.data import Authored
from csrm_guard_train.pairs import pair_groups, read_pairs
from csrm_guard_train.strictness_report import app
from csrm_guard_train.strictness_sources import authored_sources, public_sources

CATEGORIES = {"Violence": "stab", "Sexual content": "erotic", "Hate, harassment and discrimination": "hateful"}


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(key: str, text: str, **labels: object) -> dict[str, object]:
    return {"id": key, "messages": [{"role": "user", "content": text}], "labels": {"harmful": True, **labels}}


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A set of three named categories, of which the gravest two suffice for the test, and a graded one."""
    folder = tmp_path / "public"
    folder.mkdir()
    rng = random.Random(0)
    rows = [
        row(f"{word}-{i}", f"{word} {word} " + " ".join(str(rng.randint(10, 50)) for _ in range(5)), categories=[name])
        for name, word in CATEGORIES.items()
        for i in range(40)
    ]
    write(folder, "harmful_prompts_misc", rows)
    graded = [
        row(f"v{i}", f"blow number {i}", severity=level / 4) | {"meta": {"topic": "violence"}}
        for i, level in enumerate([0, 1, 2, 3, 4] * 3)
    ]
    write(folder, "pyrit_scorer_evals", graded)
    return folder


def test_rungs_are_the_subcategories_of_a_ladder(authored: Authored):
    source = authored_sources(authored)[0]
    ladder = authored.ladders[source.category]
    assert source.subcategories == tuple(ladder.rungs.values())
    for c, rung in zip(source.conversations, [r for r in authored.rungs if r.category == source.category], strict=True):
        assert c.shows == ({ladder.rungs[rung.level]} if rung.level else frozenset())
        assert c.shows | c.lacks == set(ladder.rungs.values())


def test_guidelines_of_a_ladder_are_the_hand_written_ones(authored: Authored):
    source = authored_sources(authored)[0]
    ladder = authored.ladders[source.category]
    graver = [ladder.rungs[level] for level in (6, 5, 4)]
    milder = [ladder.rungs[level] for level in (3, 2, 1)]
    assert source.describer(graver, milder) == ladder.guidelines[4]


def test_unlisted_categories_of_a_public_row_are_unknown(public: Path):
    named, _ = public_sources(public)
    assert named.category == "forbidden_questions"
    stabbing = next(c for c in named.conversations if c.id == "stab-0")
    assert stabbing.says(frozenset({"violence, weapons and physical attacks"})) is True
    assert stabbing.says(frozenset({"sexual content"})) is None


def test_severity_becomes_one_of_four_bands(public: Path):
    _, graded = public_sources(public)
    found = {c.id: c.shows for c in graded.conversations}
    assert found["v0"] == frozenset()
    assert [next(iter(found[f"v{i}"])) for i in (1, 2, 3, 4)] == list(graded.subcategories)
    assert graded.most_severe(graded.subcategories) == graded.subcategories[3]


def test_a_category_that_our_table_lacks_keeps_its_name(tmp_path: Path):
    write(tmp_path, "red_instruct_prompts", [row("1", "text", categories=["Time travel", "Time travel / past"])])
    (source,) = public_sources(tmp_path)
    assert source.conversations[0].shows == {"Time travel"}


def test_rows_held_for_testing_or_without_a_grade_are_left_out(tmp_path: Path):
    write(tmp_path, "harmful_prompts_misc", [row("1", "text", categories=["Violence"]) | {"split_hint": "test"}])
    write(tmp_path, "pyrit_scorer_evals", [row("2", "text", severity=None) | {"meta": {"topic": "violence"}}])
    assert public_sources(tmp_path) == []


def test_a_harmless_row_lacks_the_category_that_it_was_collected_for(tmp_path: Path):
    harmless = row("1", "text", harmful=False, categories=[]) | {"meta": {"topic": "Offending User"}}
    write(tmp_path, "diasafety", [harmless])
    (source,) = public_sources(tmp_path)
    assert source.conversations[0].lacks == {"insults and mockery of the person it talks to"}


@pytest.mark.parametrize("severity", [4, -1, "high"])
def test_a_severity_out_of_range_is_refused(tmp_path: Path, severity: object):
    write(tmp_path, "pyrit_scorer_evals", [row("v", "text", severity=severity) | {"meta": {"topic": "violence"}}])
    with pytest.raises(RowError, match="from 0 to 1"):
        public_sources(tmp_path)


def test_the_command_writes_pairs_and_a_report(authored_folder: Path, public: Path, tmp_path: Path):
    out = tmp_path / "out"
    args = ["--data", str(authored_folder), "--public", str(public), "--out", str(out), "--wordings", "2"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    pairs = read_pairs(out / "pairs.jsonl")
    assert {pair.category for pair in pairs} == {"forbidden_questions"}
    assert all(pair.bound > 0.95 and pair.n >= 59 for pair in pairs)
    assert len({pair.strict_text for pair in pairs}) > len({pair.id.split("#")[0] for pair in pairs}) / 2
    conversations = [c for source in public_sources(public) for c in source.conversations]
    assert pair_groups(pairs, conversations)
    report = (out / "report.md").read_text()
    assert "harmful_prompts_misc (MIT)" in report
    assert "annotated: too few unsafe under the lenient text: n=5<59 can never pass" in report
    assert "stab" not in (out / "pairs.jsonl").read_text().replace("stab-", "")


def test_the_authored_ladders_alone_are_too_small_to_keep_a_pair(authored_folder: Path, tmp_path: Path):
    done = CliRunner().invoke(app, ["--data", str(authored_folder), "--out", str(tmp_path), "--labeller", "annotated"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "pairs.jsonl").read_text() == ""
    assert "0 of 20 pairs kept" in (tmp_path / "report.md").read_text()


def test_a_missing_folder_ends_with_an_error(authored_folder: Path, tmp_path: Path):
    for args in (["--data", str(tmp_path / "no")], ["--data", str(authored_folder), "--public", str(tmp_path / "no")]):
        done = CliRunner().invoke(app, [*args, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2
        assert "error: " in done.output
    assert not (tmp_path / "out").exists()


def test_a_row_without_labels_ends_with_its_place(authored_folder: Path, tmp_path: Path):
    write(tmp_path, "diasafety", [{"id": "1", "messages": []}])
    args = ["--data", str(authored_folder), "--public", str(tmp_path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2
    assert "diasafety.jsonl:1:" in done.output


def test_a_broken_pairs_file_names_its_line(tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text('{"id": "1", "labels": []}\n')
    with pytest.raises(RowError, match=r"pairs\.jsonl:1: not a strict pair"):
        read_pairs(tmp_path / "pairs.jsonl")
