from pathlib import Path

import pytest

from csrm_guard.errors import DocumentError
from csrm_guard_train.recipe import Recipe, RecipeError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "train" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path: Path):
    assert Recipe.from_file(path).backbone


def test_an_unknown_key_is_named_with_its_file(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('backbone = "x"\nlearning_rate = 1.0\n')
    with pytest.raises(RecipeError, match=r"r\.toml: learning_rate"):
        Recipe.from_file(path)


def test_a_value_out_of_range_is_named(tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text('backbone = "x"\nvalidation = 2.0\n')
    with pytest.raises(RecipeError, match="validation"):
        Recipe.from_file(path)


def test_a_missing_recipe_is_an_error(tmp_path: Path):
    with pytest.raises(DocumentError, match=r"none\.toml"):
        Recipe.from_file(tmp_path / "none.toml")
