from pathlib import Path

import pytest

from csrm_guard.errors import RowError
from csrm_guard_train.data import Authored, held_out, read_authored


def test_whole_deployments_are_held_out(authored: Authored):
    train, out = authored.split(0.3, seed=0)
    assert not {i.setting for i in train.items} & {i.setting for i in out.items}
    assert not {t.policy for t in train.transcripts} & {t.policy for t in out.transcripts}
    assert not {r.category for r in train.rungs} & {r.category for r in out.rungs}


def test_a_split_loses_nothing(authored: Authored):
    train, out = authored.split(0.3, seed=0)
    assert len(train.items) + len(out.items) == len(authored.items)
    assert out.items
    assert train.items


def test_the_held_out_share_is_about_what_was_asked():
    assert 0.07 < sum(held_out(f"shop {i}", 0.1, 0) for i in range(2000)) / 2000 < 0.13


def test_another_seed_holds_others_out():
    names = [f"shop {i}" for i in range(200)]
    assert {n for n in names if held_out(n, 0.2, 0)} != {n for n in names if held_out(n, 0.2, 1)}


def test_the_violating_message_stands_behind_the_context(authored: Authored):
    item = next(i for i in authored.items if i.stage == "response")
    assert item.violating[:-1] == item.compliant[:-1]
    assert item.violating[-1].role == "assistant"


def test_a_missing_set_names_the_folder(tmp_path: Path):
    with pytest.raises(RowError, match=r"no ladders\*"):
        read_authored(tmp_path)


def test_a_missing_field_names_file_and_row(authored_folder: Path, tmp_path: Path):
    for path in authored_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "items-x.jsonl").write_text('{"id": "x1", "target": "response"}\n')
    with pytest.raises(RowError, match=r"items-x\.jsonl: row 'x1': no field 'context'"):
        read_authored(tmp_path)


def test_a_file_cut_short_is_an_error(authored_folder: Path, tmp_path: Path):
    for path in authored_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "rungs-x.jsonl").write_text('{"id": "x1", "categ')
    with pytest.raises(RowError, match=r"rungs-x\.jsonl:1: not a whole line of JSON"):
        read_authored(tmp_path)
