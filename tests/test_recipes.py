"""Every recipe that comes with the project is a recipe."""

from pathlib import Path

import pytest

from dcclip_cli.recipe.load import load

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_header_names_the_command_and_data_that_is_not_there(path: Path) -> None:
    loaded = load(path)
    assert loaded.recipe.name == path.stem and loaded.recipe.stages
    assert f"recipes/{path.name}" in loaded.text
    # Public data, and ImageNet weights of the demo teacher and the starter, are fetched first.
    fetched = path.stem in ("demo-teacher", "starter") or (
        path.stem.startswith("collect-") and path.stem != "collect-sample"
    )
    assert bool(loaded.missing_files()) <= fetched
    assert not fetched or "\n#   from " in loaded.text or "\n# First: " in loaded.text


def test_what_the_benchmarks_of_training_vary_is_a_recipe_whose_files_are_there() -> None:
    loaded = load(ROOT / "benchmarks/train/small.yaml")
    assert loaded.recipe.name == "small"
    assert loaded.recipe.stages == ("distill", "align")
    assert not loaded.missing_files()
