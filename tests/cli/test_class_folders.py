"""From class folders to a model that is measured on other pictures of the classes, by what the hint says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dcclip_cli.data.pair import Pair
from tests.cli.conftest import dcclip
from tests.conftest import SHAPES

pytestmark = pytest.mark.any_cpu


def test_class_folders_are_collected_trained_on_and_measured(
    whole_recipe: dict[str, Any], pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for pair in pairs:
        colour, shape = pair.key.split("-")
        folder = tmp_path / ("held out" if colour == "red" else "形状 shapes") / shape
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{colour}.png").write_bytes(pair.image)
    names = {shape: {"en": shape, "zh": zh} for shape, zh in SHAPES.items()}
    for name in ("held out", "形状 shapes"):
        (tmp_path / name / "classes.yaml").write_text(yaml.safe_dump(names, allow_unicode=True), "utf-8")
    recipe = {name: whole_recipe[name] for name in ("name", "student")} | {
        "data": {"train": "./形状 shapes"},
        "align": whole_recipe["align"] | {"start": "scratch"},
        "eval": {"datasets": ["./held out"]},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    refused = dcclip("run", "recipe.yaml", "--check", expect=1)
    assert "is a folder of class folders (bar, circle, cross, ...), not of pairs" in refused.stderr
    hint = re.search(r"write in the recipe: (\{.*\}\}); ", " ".join(refused.stderr.split()))
    assert hint, refused.stderr
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe | yaml.safe_load(hint[1]), allow_unicode=True), "utf-8")
    dcclip("run", "recipe.yaml")
    manifest = json.loads(Path("runs/一生/collect/manifest.json").read_text("utf-8"))
    assert manifest["pairs"] == {"read": 32, "kept": 32, "dropped": {}}
    results = json.loads(Path("runs/一生/eval/held out.json").read_text("utf-8"))
    assert {one["language"]: (one["n"], one["class_names"][0]) for one in results} == {
        "en": (8, "bar"),
        "zh": (8, "横条"),
    }
