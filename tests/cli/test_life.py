"""The commands one after another, from a recipe to probabilities, with a tiny AltCLIP as teacher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from dcclip_cli.core.checksums import read_record
from dcclip_cli.data.pair import Pair
from dcclip_cli.model import precision
from dcclip_cli.model.precision import torch_has_bf16
from tests.cli.conftest import dcclip
from tests.conftest import Build

pytestmark = pytest.mark.any_cpu


@pytest.fixture
def here(
    whole_recipe: dict[str, Any],
    pairs_file: Path,
    pairs: list[Pair],
    build_once: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A directory with recipe.yaml, two pictures, and the run that `dcclip run recipe.yaml` left."""

    def live(folder: Path) -> None:
        evaluation = {"datasets": ["./train.parquet"], "precision": "bf16"}
        recipe = whole_recipe | {"data": {"train": "./train.parquet"}, "eval": evaluation}
        (folder / "train.parquet").symlink_to(pairs_file)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), "utf-8")
        for pair in pairs[:2]:
            (folder / f"{pair.key}.png").write_bytes(pair.image)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(precision, "torch_has_bf16", torch_has_bf16)  # here `precision: auto` is what a user gets
            (folder / "output.txt").write_text(dcclip("run", "recipe.yaml").output, "utf-8")

    folder = build_once("life", live)
    monkeypatch.chdir(folder)
    return folder


def test_a_run_ends_with_a_table_of_teacher_student_and_bundle(here: Path) -> None:
    lines = (here / "output.txt").read_text("utf-8").splitlines()
    header = next(line for line in lines if "student / teacher" in line)
    assert header.split()[:3] == ["teacher", "student", "bundle"]
    rows = {line.split("  ")[0].strip() for line in lines if "%" in line}
    assert {"top-1 train en", "top-1 train zh", "parameters", "memory", "one image", "one text"} <= rows
    results = json.loads((here / "runs/一生/eval/train.json").read_text("utf-8"))
    measured = [(result["model"], result["language"], result["classes"], result["n"]) for result in results]
    assert [result["precision"] for result in results] == ["bf16"] * 4 + ["fp32"] * 2  # of the bundle
    assert len(set(measured)) == len(measured) == 6
    assert {row[1:] for row in measured} == {("zh", 40, 40), ("en", 40, 40)}


def test_a_run_puts_its_results_into_the_cards_of_student_and_bundle(here: Path) -> None:
    results = json.loads((here / "runs/一生/eval/train.json").read_text("utf-8"))
    for folder, name in (("align/model", "一生"), ("export", "一生-fp32")):
        card = ModelCard.load(here / f"runs/一生/{folder}/README.md")
        assert isinstance(card.data, ModelCardData) and card.data.model_name == name and card.data.eval_results
        metrics_by_language = {entry.dataset_config: entry.metric_value for entry in card.data.eval_results}
        assert metrics_by_language == {
            result["language"]: round(100 * result["value"], 2) for result in results if result["model"] == name
        } and set(metrics_by_language) == {"en", "zh"}
        read_record(here / f"runs/一生/{folder}/dcclip.json", "").check()
    distilled = ModelCard.load(here / "runs/一生/distill/model/README.md").data
    assert isinstance(distilled, ModelCardData) and distilled.eval_results is None


def test_a_run_says_and_records_what_its_stages_computed_in(here: Path) -> None:
    output = (here / "output.txt").read_text("utf-8")
    for stage in ("distill", "align"):
        record = json.loads((here / f"runs/一生/{stage}/model/dcclip.json").read_text("utf-8"))["computed_in"]
        assert f"{stage}: computes in {record['precision']} ({record['reason']})" in output


def test_a_finished_run_does_nothing_again_and_shows_its_table(here: Path) -> None:
    weights = here / "runs/一生/align/model/open_clip_model.safetensors"
    written = weights.stat().st_mtime_ns
    again = dcclip("run", "recipe.yaml")
    repeated = [line.split(":")[0] for line in again.stderr.splitlines() if "already done" in line]
    assert repeated == ["distill", "align", "export", "eval"]
    assert "student / teacher" in again.stdout
    assert weights.stat().st_mtime_ns == written
    assert dcclip("align", "recipe.yaml", "-q").stderr == ""
    checked = dcclip("run", "recipe.yaml", "--check", "--device", "cpu").stdout
    assert checked == "nothing to run in runs/一生: already finished: distill, align, eval, export\n"


def test_a_run_measures_again_what_its_recipe_asks_anew_but_trains_nothing_twice(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(here, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    weights = tmp_path / "copy/runs/一生/align/model/open_clip_model.safetensors"
    written = weights.stat().st_mtime_ns
    again = dcclip("run", "recipe.yaml", "--set", "eval.languages=[zh]", "--set", "export=null")
    assert "top-1 train zh" in again.stdout and "top-1 train en" not in again.stdout
    assert weights.stat().st_mtime_ns == written


def test_eval_takes_models_side_by_side(here: Path) -> None:
    student = "runs/一生/align/model"
    teacher = f"hf:{yaml.safe_load(Path('recipe.yaml').read_text('utf-8'))['teacher']['model']}"
    shown = dcclip("eval", "--model", student, "--model", teacher, "--dataset", "./train.parquet", "--languages", "zh")
    table = [line.split() for line in shown.stdout.splitlines()]
    assert [line[0] for line in table if line and line[-1].endswith("%")] == ["一生", "altclip"]
    options = ["--dataset", "./train.parquet", "--languages", "zh，en", "--json", "--limit", "10"]
    by_name = dcclip("eval", "--model", "runs/一生", *options)
    results = json.loads(by_name.stdout)
    assert [(result["language"], result["n"]) for result in results] == [("zh", 10), ("en", 10)]
    assert by_name.stderr.startswith("model: bundle runs/一生/export\n")


def test_predict_splits_labels_in_both_languages_and_prints_what_is_asked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = "red-circle.png"
    monkeypatch.setenv("DCCLIP_MODEL", "runs/一生")
    plain = dcclip("predict", picture, "--labels", "红圆，dog, a red circle", "-q").output.strip()
    assert plain.startswith(f"{picture}   ") and plain.count("%") == 3
    listed = json.loads(dcclip("predict", picture, "--labels", "猫,dog", "--json", "-q").output)
    assert sum(label["probability"] for label in listed[0]["labels"]) == pytest.approx(1, abs=1e-5)
    assert {label["label"] for label in listed[0]["labels"]} == {"猫", "dog"}
    lines = dcclip("predict", "-", "--labels", "猫,dog", "--top-k", 1, "--jsonl", "-q", stdin="red-circle.png\n").output
    assert [json.loads(line)["image"] for line in lines.splitlines()] == [picture]
    table = dcclip("predict", ".", "--labels", "猫,dog", "--csv", "-q").output.splitlines()
    assert table[0] == "image,label,probability" and len(table) == 5


def test_models_lists_the_run_and_the_model_that_comes_with_dcclip(here: Path) -> None:
    shown = dcclip("models").stdout
    assert "runs/一生   bundle   runs/一生/export" in shown
    assert "starter     bundle   included in dcclip" in shown
