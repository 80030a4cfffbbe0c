"""Options that decide a result, bounds of numbers, and the recipes that come with the project."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from dcclip_cli.core.options import Neutral, Options, decisive
from dcclip_cli.recipe.load import _models, load, varied
from dcclip_cli.recipe.schema import Recipe


class Loader(Options):
    workers: Neutral[int] = Field(1, ge=0)
    size: int = 8


class Stage(Options):
    loaders: tuple[Loader, ...] = ()
    source: str = Field("data", alias="from")
    log_every_steps: Neutral[int] = 20


def test_decisive_options_are_all_but_neutral_ones_at_any_depth() -> None:
    stage = Stage.model_validate({"loaders": [{"workers": 4}], "log_every_steps": 1})
    assert decisive(stage) == {"loaders": [{"size": 8}], "from": "data"}
    assert decisive({1: (stage.loaders[0], None)}) == {"1": [{"size": 8}, None]}


def test_every_number_in_a_recipe_has_a_lower_and_an_upper_bound_and_is_finite() -> None:
    def numbers(node: Any, at: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict) and node.get("type") in ("integer", "number"):
            yield at, node
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            yield from numbers(value, f"{at}.{key}")

    schema = Recipe.model_json_schema()
    nodes = dict(numbers({key: schema[key] for key in ("$defs", "properties")}, "recipe"))
    bounds = [{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}]
    unbounded = [
        at for at, node in nodes.items() if "const" not in node and not all(bound & node.keys() for bound in bounds)
    ]
    assert len(nodes) > 100 and not unbounded
    for kind in _models(Recipe) | _options_in(Recipe):
        assert kind.model_config["strict"] and kind.model_config["allow_inf_nan"] is False, kind


def _options_in(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """Every model in a model's fields, at any depth."""
    inner = {model for field in kind.model_fields.values() for model in _models(field.annotation)}
    return inner | {deeper for model in inner for deeper in _options_in(model)}


def test_lists_are_taken_for_tuples_also_as_values_of_a_mapping() -> None:
    class Rows(Options):
        where: dict[str, str | tuple[str, ...]] | None = None

    assert Rows.model_validate({"where": {"语言": ["zh", "en"], "x": "y"}}).where == {"语言": ("zh", "en"), "x": "y"}


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_header_names_the_command_and_data_that_is_not_there(path: Path) -> None:
    loaded = load(path)
    assert loaded.recipe.name == path.stem and loaded.recipe.stages
    assert f"recipes/{path.name}" in loaded.text
    # Public data, ImageNet weights of the demo teacher and the starter, and a recipe's teacher come first.
    fetched = path.stem in ("demo-teacher", "starter", "dc-clip-tiny") or (
        path.stem.startswith("collect-") and path.stem != "collect-sample"
    )
    assert bool(loaded.missing_files()) <= fetched
    assert not fetched or "\n#   from " in loaded.text or "\n# First: " in loaded.text


def test_what_the_benchmarks_of_training_vary_is_a_recipe_whose_files_are_there() -> None:
    loaded = load(ROOT / "benchmarks/train/small.yaml")
    assert loaded.recipe.stages == ("distill", "align", "eval") and not loaded.missing_files()
    assert all(varied(loaded, name, 0).recipe.stages for name in loaded.recipe.variants or ())
