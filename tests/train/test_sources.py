"""Public sets by hub name: their own columns become normalised rows; a changed or forbidden set is an error."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csrm_guard.errors import RowError
from csrm_guard.messages import parse_messages
from csrm_guard_train.sources import SOURCES, Use, app, convert, load

BEAVERTAILS = {"prompt": "How?", "response": "So.", "category": {"theft": True, "hate": False}, "is_safe": False}
WILDGUARD = {
    "prompt": "How?", "prompt_harm_label": "harmful", "response": "No.", "response_harm_label": "unharmful",
    "response_refusal_label": "refusal", "subcategory": "fraud",
}  # fmt: skip
AEGIS = {
    "prompt": "How?", "response": None, "prompt_label": "unsafe", "response_label": None,
    "violated_categories": "Violence, Guns and Illegal Weapons",
}  # fmt: skip
SAFERLHF = {
    "prompt": "How?", "response_0": "Bad.", "response_1": "Good.", "is_response_0_safe": False,
    "is_response_1_safe": True, "response_0_harm_category": {"Violence": True}, "response_1_harm_category": {},
    "safer_response_id": 1,
}  # fmt: skip
COSALIGN = {"system_prompt": "Allow gore.", "prompt": "How?", "chosen_response": "So.", "rejected_response": "No."}
COSAPIEN = {"scenario": "A game studio.", "prompt": "How?", "type": "allowed"}
DYNABENCH = {
    "policy": "1. No slang.\n2. Give prices\nin euros.",
    "transcript": "User: How much?\nAgent: 5 dollars.\nUser: What?\n'Agent': Five: really.",
    "label": "FAIL",
}
ROWS = {
    "beavertails": BEAVERTAILS, "wildguardmix": WILDGUARD, "wildguardtest": WILDGUARD, "aegis-2": AEGIS,
    "pku-saferlhf": SAFERLHF, "cosalign-train": COSALIGN, "cosapien": COSAPIEN, "dynabench": DYNABENCH,
}  # fmt: skip


def read(name: str) -> list[dict]:
    return list(convert(name, [ROWS[name]], split="s"))


@pytest.mark.parametrize("name", SOURCES)
def test_every_row_is_a_conversation_with_labels_and_an_id(name: str):
    found = read(name)
    assert found
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        assert parse_messages(row["messages"])
        assert set(row["labels"]) == {"harmful", "target", "categories", "refusal", "severity"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_column_is_named_with_its_row(name: str):
    row = dict(ROWS[name])
    lost = next(column for column in ("prompt", "policy") if column in row)
    del row[lost]
    with pytest.raises(RowError, match=rf"{name}/s#0: no column '{lost}'"):
        list(convert(name, [row], split="s"))


def test_only_categories_that_are_broken_are_kept():
    assert read("beavertails")[0]["labels"]["categories"] == ["theft"]
    assert read("beavertails")[0]["labels"]["harmful"] is True


def test_prompt_and_response_are_judged_apart():
    prompt, response = read("wildguardmix")
    assert (prompt["labels"]["target"], prompt["labels"]["harmful"]) == ("prompt", True)
    assert (response["labels"]["target"], response["labels"]["harmful"]) == ("response", False)
    assert response["labels"]["refusal"] is True


def test_a_prompt_without_response_is_one_row():
    assert [row["labels"]["categories"] for row in read("aegis-2")] == [["Guns and Illegal Weapons", "Violence"]]


def test_redacted_rows_are_left_out():
    assert list(convert("aegis-2", [{**AEGIS, "prompt": "REDACTED"}], split="s")) == []


def test_the_safer_answer_is_the_chosen_one():
    pair = read("pku-saferlhf")[-1]
    assert (pair["chosen"], pair["rejected"]) == ("Good.", "Bad.")


def test_a_configuration_is_kept_as_the_policy():
    assert read("cosalign-train")[0]["policy"] == "Allow gore."
    assert read("cosapien")[0]["policy"] == "A game studio."


def test_a_numbered_policy_becomes_rules_and_a_transcript_turns():
    row = read("dynabench")[0]
    assert [rule["text"] for rule in row["rules"]] == ["No slang.", "Give prices\nin euros."]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant", "user", "assistant"]
    assert row["messages"][-1]["content"] == "Five: really."


@pytest.mark.parametrize("change", [{"label": "MAYBE"}, {"transcript": "nobody speaks"}])
def test_a_benchmark_row_that_cannot_be_read_is_named(change: dict[str, str]):
    with pytest.raises(RowError, match="dynabench/s#0: "):
        list(convert("dynabench", [{**DYNABENCH, **change}], split="s"))


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if not source.trainable])
def test_non_commercial_sets_and_benchmarks_are_never_trained_on(name: str):
    with pytest.raises(RowError, match="for evaluation only"):
        list(convert(name, [ROWS[name]], split="s", use=Use.train))


def test_permissive_sets_may_be_trained_on():
    assert list(convert("wildguardmix", [WILDGUARD], split="s", use=Use.train))


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(RowError, match="unknown set 'x'; there are beavertails"):
        list(convert("x", [], split="s"))


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a set with the hub's columns into a local folder that the real library reads."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(BEAVERTAILS) + "\n" for _ in range(3)))
    monkeypatch.setitem(SOURCES, "beavertails", replace(SOURCES["beavertails"], hub=str(folder)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("local")
def test_a_set_is_read_by_the_library_of_the_hub():
    assert [row["id"] for row in load("beavertails", split="train")] == [f"beavertails/train#{i}" for i in range(3)]


@pytest.mark.usefixtures("local")
def test_a_split_that_does_not_exist_is_named():
    with pytest.raises(RowError, match=r"hub \(dev\): .*check the split"):
        list(load("beavertails", split="dev"))


@pytest.mark.usefixtures("local")
def test_the_command_writes_rows(tmp_path: Path):
    out = tmp_path / "b.jsonl.gz"
    result = CliRunner().invoke(app, ["beavertails", "--split", "train", "--out", str(out), "--most", "2"])
    assert result.exit_code == 0, result.output
    with gzip.open(out, "rt", encoding="utf-8") as lines:
        assert len(lines.readlines()) == 2


@pytest.mark.usefixtures("local")
def test_a_refused_set_leaves_no_file(tmp_path: Path):
    out = tmp_path / "b.jsonl.gz"
    result = CliRunner().invoke(app, ["beavertails", "--split", "train", "--out", str(out), "--use", "train"])
    assert result.exit_code == 2
    assert list(tmp_path.glob("b.jsonl*")) == []
