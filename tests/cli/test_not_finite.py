"""A model that gives NaN is one error and one hint in every command, and nothing is written."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from dcclip_cli.files import cache_folder
from dcclip_cli.store import FeatureStore
from tests.cli.conftest import dcclip
from tests.records import rewrite


def refused(*arguments: object) -> str:
    """What a command's one error line says."""
    result = dcclip(*arguments, expect=1)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    hints = [line for line in result.stderr.splitlines() if line.startswith("hint:  ")]
    assert len(errors) == len(hints) == 1 and "fp32" in hints[0]
    return errors[0]


def damaged(folder: Path, out: Path, tower: str) -> Path:
    """A copy of a model directory, the weights of a tower NaN."""
    shutil.copytree(folder, out)
    [file] = out.glob("*.safetensors")
    weights = load_file(file)
    for name, value in weights.items():
        if value.is_floating_point() and name.startswith("visual") == (tower == "image") and "logit" not in name:
            value.fill_(float("nan"))
    save_file(weights, file, {"format": "pt"})
    rewrite(out)
    return out


def test_a_model_of_nan_weights_is_refused_and_nothing_is_written(
    model_folder: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = {tower: damaged(model_folder, Path(f"坏 {tower}"), tower) for tower in ("image", "text")}
    commands: list[tuple[str, list[Any]]] = [
        ("text", ["predict", pictures[0], "--labels", "猫,dog"]),
        ("image", ["embed", *pictures]),
        ("image", ["export", "--out", "bundle"]),
    ]
    for tower, command in commands:
        said = refused(*command, "--model", broken[tower])
        assert "returned embeddings that are not finite (NaN or infinite) for " in said and said.endswith(f" {tower}s")
    assert not list(tmp_path.glob("embeddings*")) and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("value", [np.nan, 1000.0])
def test_a_model_directory_whose_logit_scale_is_not_finite_is_refused(
    value: float, model_folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    [file] = model.glob("*.safetensors")
    weights = load_file(file)
    weights["logit_scale"].fill_(value)  # of 1000, the exponential is infinite
    save_file(weights, file, {"format": "pt"})
    rewrite(model)
    assert "has a logit scale of" in refused("predict", pictures[0], "--labels", "猫,dog", "--model", model)


def test_a_teacher_of_nan_weights_is_refused_and_not_kept(
    altclip_folder: Path, whole_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(altclip_folder, "老师 teacher")
    [file] = (tmp_path / "老师 teacher").glob("*.safetensors")
    weights = load_file(file)
    weights["text_projection.weight"].fill_(float("nan"))
    save_file(weights, file, {"format": "pt"})
    teacher = {"kind": "altclip", "model": str(tmp_path / "老师 teacher")}
    recipe = whole_recipe | {"teacher": teacher, "distill": whole_recipe["distill"] | {"teacher_cache": True}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
    said = refused("distill", "recipe.yaml")
    assert "老师 teacher returned embeddings that are not finite" in said and said.endswith(" texts")
    stored = [FeatureStore(folder) for folder in (cache_folder() / "teacher-cache").glob("*/*") if folder.is_dir()]
    assert sum(store.rows for store in stored) > 0  # of images, which come first
