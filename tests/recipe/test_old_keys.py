"""Keys of older recipes: renamed ones are accepted with a warning, removed ones where they change nothing."""

from pathlib import Path

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.options import Removed
from dcclip_cli.recipe.load import RESOLVED, load, record
from dcclip_cli.train.options import OptimizerOptions

RECIPE = """\
name: old
teacher: {kind: altclip, model: BAAI/AltCLIP}
student: {preset: S}
data: {train: ./train.parquet}
distill:
  steps: 1
  optimizer:
    rate: 0.5
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(OptimizerOptions, "renamed", {"rate": "lr"})
    monkeypatch.setattr(OptimizerOptions, "removed", {"sharded": Removed("start with accelerate", (None, False))})
    (tmp_path / "old.yaml").write_text(RECIPE, "utf-8")
    return tmp_path / "old.yaml"


def lr(recipe: Path, *sets: str) -> float:
    distill = load(recipe, sets).recipe.distill
    assert distill is not None
    return distill.optimizer.lr


def test_an_old_key_sets_the_new_one_and_is_warned_about_once_with_its_line(recipe: Path) -> None:
    assert lr(recipe) == 0.5
    assert load(recipe).warnings == (f"{recipe}:8: distill.optimizer.rate is now distill.optimizer.lr",)
    assert "rate" not in load(recipe).recipe.model_dump_json()


@pytest.mark.parametrize(("key", "warned"), [("rate", True), ("lr", False)])
def test_set_overrides_the_file_under_either_name(recipe: Path, key: str, warned: bool) -> None:
    expression = f"distill.optimizer.{key}=0.25"
    assert lr(recipe, expression) == 0.25
    assert bool(load(recipe, [expression]).warnings) == warned
    recipe.write_text(RECIPE.replace("rate:", "lr:"), "utf-8")
    assert lr(recipe, expression) == 0.25
    assert len(load(recipe, [expression]).warnings) == warned


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("rate: -1", ":8: distill.optimizer.rate: input should be greater than 0 (got -1)"),
        (
            "rate: 1\n    lr: 1",
            ":8: distill.optimizer.rate: is the old name of lr, which is given too: remove one of them",
        ),
        ("sharded: true", ":8: distill.optimizer.sharded: is no longer an option: start with accelerate"),
    ],
)
def test_mistakes_in_old_keys_name_file_line_and_key_as_written(recipe: Path, text: str, what: str) -> None:
    recipe.write_text(RECIPE.replace("rate: 0.5", text), "utf-8")
    with pytest.raises(DcclipError) as caught:
        load(recipe)
    assert caught.value.what == f"{recipe}{what}"


def test_a_removed_key_that_changes_nothing_is_ignored_with_a_warning(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("rate: 0.5", "sharded: false"), "utf-8")
    assert load(recipe).warnings == (f"{recipe}:8: distill.optimizer.sharded is no longer an option and is ignored",)


def test_a_run_finished_before_a_rename_still_counts_as_finished(recipe: Path, tmp_path: Path) -> None:
    record(load(recipe), tmp_path / "run", finished=[])
    resolved = tmp_path / "run" / RESOLVED
    resolved.write_text(
        resolved.read_text("utf-8").replace("    lr: 0.5", "    rate: 0.5\n    sharded: false"), "utf-8"
    )
    assert "rate: 0.5" in resolved.read_text("utf-8")
    record(load(recipe), tmp_path / "run", finished=["distill"])
    with pytest.raises(DcclipError, match=r"distill.optimizer.lr was 0.5, is 0.1"):
        record(load(recipe, ["distill.optimizer.lr=0.1"]), tmp_path / "run", finished=["distill"])
