"""csrm-sweep: variants of a recipe, trained, scored, and tabulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from csrm_guard.rows import Row, parse_row
from csrm_guard_train.recipe import Recipe, RecipeError
from csrm_guard_train.sweep import Outcome, Sweep, Variant, app, markdown, outcome

RUN = {"seconds": 3.0, "tokens": 1_000, "held_out": 0.6}


def _row(key: str, label: str) -> Row:
    policy = {"name": "p", "rules": [{"id": "r", "text": "No slang."}]}
    return parse_row(
        {"id": key, "policy": policy, "messages": [{"role": "user", "content": "hi"}], "label": label}, key
    )


@pytest.fixture
def rows() -> list[Row]:
    pair = [("compliant", "safe"), ("violating", "unsafe"), ("lenient", "safe"), ("strict", "unsafe")]
    return [_row(f"{stem}-{kind}", label) for stem in ("a", "b") for kind, label in pair]


def test_the_order_under_one_rule_counts_pairs_and_ties_by_half(rows: list[Row]) -> None:
    scores = {row.id: 0.0 for row in rows} | {"a-violating": 1.0}
    found = outcome(rows, scores, RUN)
    assert found.same_rule == 0.75
    assert found.strict == 0.5


def test_auroc_leaves_out_rows_of_several_turns(rows: list[Row]) -> None:
    long = parse_row(
        {
            "id": "t",
            "policy": {"name": "p", "rules": [{"id": "r", "text": "No slang."}]},
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
            "label": "unsafe",
            "scope": "any assistant turn",
        },
        "t",
    )
    scores = {row.id: float(bool(row.label)) for row in rows} | {"t": -5.0}
    assert outcome([*rows, long], scores, RUN).auroc == 1.0


def test_a_change_reaches_into_the_mixture_and_keeps_the_rest() -> None:
    sweep = Sweep(recipe=Recipe(backbone="x", lr=0.5), variants=(Variant(name="v", change={"mixture.items": 0.25}),))
    recipe = sweep.recipe_of(sweep.variants[0], 7)
    assert (recipe.mixture.items, recipe.mixture.rungs, recipe.lr, recipe.seed) == (0.25, 0.5, 0.5, 7)


def test_a_change_of_no_field_is_refused_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('[recipe]\nbackbone = "x"\n[[variants]]\nname = "v"\nchange = { gama = 1 }\n')
    with pytest.raises(RecipeError, match=r"s\.toml: gama"):
        Sweep.from_file(path)


def test_the_table_gives_the_mean_and_the_range_over_seeds() -> None:
    one = Outcome(0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 10.0, 1_000_000)
    two = Outcome(0.8, 0.5, 0.5, 0.5, 0.5, 0.5, 20.0, 2_000_000)
    assert "| v | 2 | 0.700 (0.600-0.800) |" in markdown({"v": [one, two]})


@pytest.fixture
def dev(tmp_path: Path, rows: list[Row]) -> Path:
    folder = tmp_path / "dev"
    folder.mkdir()
    objects = [
        {
            "id": row.id,
            "policy": {"name": "p", "rules": [{"id": "r", "text": "No slang."}]},
            "messages": [{"role": "user", "content": row.id}],
            "label": "unsafe" if row.label else "safe",
        }
        for row in rows
    ]
    (folder / "d.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    return folder


def test_a_sweep_trains_every_variant_once_and_goes_on_where_it_stood(
    tmp_path: Path, backbones: Path, authored_folder: Path, dev: Path
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'seeds = [0]\n[recipe]\nbackbone = "tiny"\nepochs = 0.2\n[[variants]]\nname = "a"\n'
        '[[variants]]\nname = "b"\nchange = { structure = "pairwise" }\n'
    )
    out = tmp_path / "out"
    command = [str(path), "--backbones", str(backbones), "--data", str(authored_folder), "--dev", str(dev)]
    first = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert first.exit_code == 0, first.output
    made = (out / "a-0" / "scores.json").stat().st_mtime_ns
    (out / "b-0" / "scores.json").unlink()
    assert CliRunner().invoke(app, [*command, "--out", str(out)]).exit_code == 0
    assert (out / "a-0" / "scores.json").stat().st_mtime_ns == made
    assert set(json.loads((out / "results.json").read_text())) == {"a", "b"}


def test_an_unknown_backbone_is_named(tmp_path: Path, authored_folder: Path, dev: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('[recipe]\nbackbone = "absent"\n[[variants]]\nname = "a"\n')
    found = CliRunner().invoke(
        app, [str(path), "--backbones", str(tmp_path), "--data", str(authored_folder), "--dev", str(dev)]
    )
    assert found.exit_code == 2
    assert "absent" in found.output


def test_the_stage_before_differs_from_the_run_in_what_the_sweep_names() -> None:
    sweep = Sweep(
        recipe=Recipe(backbone="x"),
        variants=(Variant(name="v", change={"margin": 0.5, "mixture.items": 0.25}),),
        first={"mixture.items": 0.0, "pair_weight": 1.0},
    )
    first = sweep.first_of(sweep.variants[0], 3)
    assert first is not None
    assert (first.mixture.items, first.pair_weight, first.margin, first.seed) == (0.0, 1.0, 0.5, 3)


def test_a_sweep_without_a_stage_before_has_none() -> None:
    sweep = Sweep(recipe=Recipe(backbone="x"), variants=(Variant(name="v"),))
    assert sweep.first_of(sweep.variants[0], 0) is None


def test_a_stage_before_that_variants_have_alike_is_trained_once(
    tmp_path: Path, backbones: Path, authored_folder: Path, dev: Path
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'seeds = [0]\n[recipe]\nbackbone = "tiny"\nepochs = 0.1\n[first]\npair_weight = 0.0\n[[variants]]\nname = "a"\n'
        '[[variants]]\nname = "b"\nchange = { pair_weight = 0.5 }\n'
        '[[variants]]\nname = "c"\nchange = { lr = 1e-5 }\n'
    )
    out = tmp_path / "out"
    command = [str(path), "--backbones", str(backbones), "--data", str(authored_folder), "--dev", str(dev)]
    found = CliRunner().invoke(app, [*command, "--out", str(out)])
    assert found.exit_code == 0, found.output
    stages = {json.loads((p / "checkpoint" / "recipe.json").read_text())["lr"] for p in out.glob("first-*")}
    assert stages == {1e-4, 1e-5}
    assert len(list(out.glob("first-*"))) == 2
