"""Keys of older recipes: renamed ones are accepted with a warning, removed ones where they change nothing."""

from pathlib import Path

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.options import Options, Removed
from dcclip_cli.recipe.load import check_finished, load, record
from dcclip_cli.run_dir import RESOLVED
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


def sections(kind: type[Options] = Options) -> set[type[Options]]:
    """Every class of options that a recipe can have."""
    return {one for child in kind.__subclasses__() for one in {child, *sections(child)}}


@pytest.mark.parametrize("section", sorted(sections(), key=repr))
def test_old_keys_are_none_of_today_and_new_names_are(section: type[Options]) -> None:
    keys = {field.alias or name for name, field in section.model_fields.items()}
    assert set(section.renamed.values()) <= keys
    assert not {*section.renamed, *section.removed} & keys


def test_a_resolved_recipe_of_version_0_1_is_still_read_as_the_same(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(
        "name: x\ncollect:\n  sources: [{kind: folder, path: ./photos}]\n  tidy: {ftfy: false}\n  balance: []\n"
        "  exclude: {paths: [./test.parquet]}\n  fetch: {authorities: null}\n"
        "data: {train: ./x}\nalign:\n  steps: 1\n  start: scratch\n  parallel: ddp\n"
        "  captions: {also_other: true, share: 0.5}\nstudent: {preset: S}\n",
        "utf-8",
    )
    loaded = load(tmp_path / "old.yaml")
    collect, align = loaded.recipe.collect, loaded.recipe.align
    assert collect is not None and align is not None
    assert not collect.normalize.ftfy and collect.decontaminate and len(collect.decontaminate.paths) == 1
    assert align.captions.second_caption and align.captions.caption_fraction == 0.5
    assert len(loaded.warnings) == 7


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
    record(load(recipe), tmp_path / "run")
    resolved = tmp_path / "run" / RESOLVED
    old = resolved.read_text("utf-8").replace("    lr: 0.5", "    rate: 0.5\n    sharded: false")
    assert "rate: 0.5" in old
    resolved.write_text(old, "utf-8")
    (tmp_path / "run/distill/model").mkdir(parents=True)
    (tmp_path / "run/distill/model/dcclip.json").touch()
    check_finished(load(recipe).recipe, tmp_path / "run", again=())
    with pytest.raises(DcclipError, match=r"distill.optimizer.lr was 0.5, is 0.1"):
        check_finished(load(recipe, ["distill.optimizer.lr=0.1"]).recipe, tmp_path / "run", again=())
