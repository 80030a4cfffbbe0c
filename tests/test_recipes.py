"""Every recipe that comes with the project is a recipe."""

from pathlib import Path

import pytest

from dcclip_cli.recipe.load import load

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_called_like_its_file(path: Path) -> None:
    loaded = load(path)
    assert loaded.recipe.name == path.stem
    assert loaded.recipe.stages
    assert f"recipes/{path.name}" in loaded.text, "the header names the command"


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "demo-teacher"], ids=lambda path: path.stem)
def test_what_a_recipe_reads_comes_with_it(path: Path) -> None:
    assert load(path).missing_files() == []  # the demo teacher's ImageNet weights are fetched first, as its header says
