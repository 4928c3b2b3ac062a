"""csrm-leakage: planted leaks are found, whatever the format; near texts are not."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csrm_guard.errors import RowError
from csrm_guard_train.leakage import app, find_leaks

SAID = "Your parcel left our depot on Tuesday and should reach you before Friday noon."
ROW = {"id": "e1", "policy": {"name": "post", "rules": [{"id": "r", "text": "Give no dates."}]},
       "messages": [{"role": "assistant", "content": SAID}], "label": "unsafe"}  # fmt: skip


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    path = tmp_path / "dev.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW) + "\n").encode()))
    return path


def write(folder: Path, **fields: object) -> Path:
    path = folder / "train.jsonl"
    path.write_text(json.dumps({"id": "t1", **fields}) + "\n")
    return path


def test_a_copy_with_other_case_and_punctuation_is_found(tmp_path: Path, evaluation: Path):
    train = write(tmp_path, violating=SAID.upper().replace(".", "!!"))
    found = list(find_leaks([train], [evaluation]))
    assert [(leak.train_id, leak.evaluation_id, leak.whole) for leak in found] == [("t1", "e1", True)]
    assert found[0].evaluation_field == "messages[0].content"


def test_eight_words_in_a_row_are_found(tmp_path: Path, evaluation: Path):
    train = write(
        tmp_path, context=[{"role": "user", "content": "So it left our depot on Tuesday and should reach me?"}]
    )
    found = list(find_leaks([train], [evaluation]))
    assert [(leak.shared, leak.whole) for leak in found] == [("left our depot on tuesday and should reach", False)]


def test_seven_words_in_a_row_are_not(tmp_path: Path, evaluation: Path):
    train = write(tmp_path, rule="It left our depot on Tuesday and should arrive.")
    assert list(find_leaks([train], [evaluation])) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"distractors": ["never give a date, before the depot scans"]},
        {"guidelines": [{"disallow_from": 1, "texts": ["Never give a date before the depot scans"]}]},
        {"rules": [{"id": "r9", "text": "Never give a date before the DEPOT scans!"}]},
    ],
    ids=["item", "ladder", "transcript"],
)
def test_a_copied_rule_is_found_however_it_is_stored(tmp_path: Path, fields: dict[str, object]):
    rule = {"id": "r", "text": "Never give a date before the depot scans."}
    target = tmp_path / "dev.jsonl"
    target.write_text(json.dumps({"id": "e", "policy": {"name": "p", "rules": [rule]}}) + "\n")
    assert [leak.whole for leak in find_leaks([write(tmp_path, **fields)], [target])] == [True]


def test_short_courtesies_and_labels_are_no_leak(tmp_path: Path):
    row = {"id": "same", "label": "unsafe", "messages": [{"role": "user", "content": "Thank you!"}]}
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (a, b):
        path.write_text(json.dumps(row) + "\n")
    assert list(find_leaks([a], [b])) == []


def test_the_command_fails_on_a_leak_and_writes_it(tmp_path: Path, evaluation: Path):
    train, out = write(tmp_path, compliant=SAID), tmp_path / "leaks.jsonl"
    args = ["--train", str(train), "--evaluation", str(evaluation), "--out", str(out)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert json.loads(out.read_text())["train_id"] == "t1"
    assert '"train_rows": 1' in result.output


def test_the_command_passes_on_clean_files(tmp_path: Path, evaluation: Path):
    args = ["--train", str(write(tmp_path, compliant="Nothing alike.")), "--evaluation", str(evaluation)]
    assert CliRunner().invoke(app, args).exit_code == 0


def test_an_empty_folder_is_an_error_that_names_it(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match="empty: holds no"):
        list(find_leaks([tmp_path / "empty"], [tmp_path / "empty"]))


def test_nothing_of_the_development_rows_is_trained_on():
    data = Path(__file__).resolve().parents[2] / "train" / "data"
    found = list(find_leaks([data / "authored"], [data / "dev"]))
    assert found == []
