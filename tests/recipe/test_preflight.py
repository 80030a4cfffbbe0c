"""What keeps a recipe from running is found before anything long starts."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli import api
from dcclip_cli.core.checksums import write_record
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import cache_folder
from dcclip_cli.core.run_dir import RunDir, StageName
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.recipe import preflight
from dcclip_cli.recipe.load import load, record
from dcclip_cli.recipe.preflight import check
from tests.tars import tar_of
from tests.train.jobs import refused

ALL: tuple[StageName, ...] = ("distill", "align", "eval", "export")


@pytest.fixture
def problems(whole_recipe: dict[str, Any], tmp_path: Path) -> Any:
    """The lines of problems of the whole recipe with some changes by dotted key, and the hint."""

    def problems(values: dict[str, Any], stages: tuple[StageName, ...] = ALL) -> tuple[list[str], str]:
        try:
            check(load(whole_recipe, values=values), RunDir(tmp_path / "run"), stages)
        except DcclipError as error:
            return [line.partition(": ")[2] for line in error.what.splitlines()], error.hint
        return [], ""

    return problems


def test_a_recipe_with_everything_in_place_has_no_problems(problems: Any) -> None:
    assert problems({}) == ([], "")
    assert problems({"export.precision": "int8", "align.validate_every_steps": 1, "data.validation": None}) == (
        ["align.validate_every_steps: requires validation pairs, but data.validation is not set"],
        "set data.validation, or data.hold_out",
    )


def test_int8_is_calibrated_on_pairs_or_on_images(
    problems: Any, pictures: list[Path], points: Path, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("猫\ncat\n", "utf-8")
    int8 = {"export.precision": "int8", "data.train": None, "data.texts": str(tmp_path / "lines.txt")}
    hint = "set export.calibration, data.train or data.images"
    assert problems(int8, ("export",)) == (["export.precision: int8 needs calibration images"], hint)
    assert problems(int8 | {"data.images": str(pictures[0].parent)}, ("export",)) == ([], "")
    int8["data.train"] = str(points)
    assert problems(int8, ("export",)) == (["export.precision: int8 needs calibration images"], hint)
    pictures[0].write_bytes(b"no image")  # white in training
    assert problems({"data.images": str(pictures[0].parent)}, ("export",)) == ([], "")
    for picture in pictures:
        picture.write_bytes(b"no image")
    lines, _ = problems(int8 | {"data.images": str(pictures[0].parent)}, ("export",))
    assert len(lines) == 1 and lines[0].startswith("data.images: ")


def test_all_problems_are_reported_at_once_with_their_hints(problems: Any, tmp_path: Path) -> None:
    (tmp_path / "leer.parquet").write_bytes(b"PAR1")
    lines, hint = problems(
        {
            "teacher.model": "BAAI/AltCLIP",
            "data.validation": str(tmp_path / "leer.parquet"),
            "eval.datasets": ["imagenet", "imagenet-cn", "food101"],
            "export.format": "openvino",
            "export.precision": "fp16",
            "export.calibration": str(tmp_path / "无"),
        }
    )
    assert [line.partition(": ")[0] for line in lines] == [
        "export.calibration", "data.validation", "teacher.model", "eval.datasets", "eval.datasets", "export.format",
    ]  # fmt: skip
    assert lines[0].startswith(f"export.calibration: {tmp_path}/无 does not exist (fix the paths")
    assert lines[2].endswith(
        "the hub cannot be reached: HF_HUB_OFFLINE is set "
        "(download it on a machine with a network: hf download BAAI/AltCLIP; or give a local directory)"
    )
    assert (
        "cannot load the images of data set imagenet: clip-benchmark/wds_imagenet1k is not complete in the local cache"
        in lines[3]
    )
    assert "cannot load the images of data set food101: found neither in --data-root nor on the hub" in lines[4]
    assert hint == "fix all of these, then check again: dcclip run RECIPE --check"


def test_test_sets_are_opened_in_the_languages_that_are_wanted(
    problems: Any, pairs: list[Pair], tmp_path: Path
) -> None:
    for shape in ("circle", "方块"):
        (tmp_path / "own" / shape).mkdir(parents=True)
        (tmp_path / "own" / shape / "1.png").write_bytes(pairs[0].image)
    own_data = {"eval.datasets": [str(tmp_path / "own")]}
    assert problems(own_data) == ([], "")
    lines, hint = problems(own_data | {"eval.languages": ["en"]})
    assert lines == ["eval.datasets: data set own has no class names in en"] and "--languages zh" in hint
    assert problems(own_data | {"eval.languages": ["en"]}, ("distill", "align")) == ([], "")


def test_a_finished_stage_needs_nothing_any_more(problems: Any, tmp_path: Path) -> None:
    gone = {"teacher.model": "BAAI/AltCLIP", "data.train": str(tmp_path / "gone.parquet")}
    assert [line.split(":")[0] for line in problems(gone)[0]] == ["data.train", "teacher.model"]
    for product in ("distill/model", "align/model", "eval", "export"):
        (tmp_path / "run" / product).mkdir(parents=True)
    (tmp_path / "run/eval/summary.json").write_text("{}")
    assert len(problems(gone)[0]) == 2  # an empty folder is no model
    for stage in ("distill", "align"):
        write_record(tmp_path / f"run/{stage}/model/dcclip.json", {})
    assert [line.split(":")[0] for line in problems(gone)[0]] == ["data.train"]  # export is checked on the pairs
    write_record(tmp_path / "run/export/dcclip.json", {})
    assert problems(gone) == ([], "")


def test_a_teacher_directory_lacks_no_file(problems: Any, altclip_folder: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "教师"
    for name in ("model.safetensors", "preprocessor_config.json"):
        shutil.rmtree(teacher, ignore_errors=True)
        shutil.copytree(altclip_folder, teacher)
        (teacher / name).unlink()
        lines, _ = problems({"teacher.model": str(teacher)})
        assert len(lines) == 1 and lines[0].startswith(f"teacher.model: {teacher} has no {name}")
    shutil.copytree(altclip_folder, teacher, dirs_exist_ok=True)
    parts = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (teacher / "model.safetensors").rename(teacher / "model-1-of-2.safetensors")
    (teacher / "model.safetensors.index.json").write_text(json.dumps(parts))
    lines, _ = problems({"teacher.model": str(teacher)})
    assert lines == [
        f"teacher.model: {teacher} lacks model-2-of-2.safetensors, which model.safetensors.index.json lists",
    ]
    (teacher / "model-2-of-2.safetensors").touch()
    assert problems({"teacher.model": str(teacher)}) == ([], "")


def test_a_teacher_in_the_local_cache_needs_no_hub(
    problems: Any, altclip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--BAAI--AltCLIP"
    shutil.copytree(altclip_folder, repository / "snapshots/1a2b")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("1a2b")
    assert problems({"teacher.model": "BAAI/AltCLIP"}) == ([], "")
    (repository / "snapshots/1a2b/model.safetensors").unlink()
    assert "the hub cannot be reached" in problems({"teacher.model": "BAAI/AltCLIP"})[0][0]
    names = {"config.json", "pytorch_model.bin", "vocab.txt", "preprocessor_config.json"}
    monkeypatch.setattr("dcclip_cli.model.reference.files_on_hub", lambda name: names)
    assert problems({"teacher.model": "BAAI/AltCLIP"}) == ([], "")


def test_what_will_not_fit_on_the_disk_is_reported(problems: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda folder: 10_000)
    lines, _ = problems({}, ("distill",))
    # 40 images x (16 + 4 cells x 32) x 2 bytes = 11.5 kB without captions; checkpoints of 0.1 M parameters: 2.8 MB.
    assert [line.split(":")[0] for line in lines] == ["distill.teacher_cache", "distill"]
    assert re.search(r"the teacher cache will take about \d+ kB, and 10 kB are free", lines[0])
    other_block = cache_folder() / "teacher-cache" / "AltCLIP-0123" / "texts" / "0.block"
    other_block.parent.mkdir(parents=True)
    other_block.write_bytes(bytes(1_000_000))  # of which this run finds nothing
    assert problems({}, ("distill",))[0] == lines
    monkeypatch.setattr(preflight, "free_bytes", lambda folder: 10_000_000)
    assert problems({}, ("distill",)) == ([], "")


def test_data_that_a_stage_cannot_use_is_reported(
    problems: Any, pairs: list[Pair], points: Path, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "zh.parquet", [replace(pair, en=()) for pair in pairs])
    lines, hint = problems({"data.train": str(tmp_path / "zh.parquet")}, ("distill",))
    assert lines == ["distill.captions.languages: there are no 'en' captions in data.train"] and "[zh]" in hint
    write_parquet(tmp_path / "broken.parquet", [replace(pairs[0], image=pairs[0].image[:200]), *pairs[1:]])
    lines, _ = problems({"data.train": str(tmp_path / "broken.parquet")}, ("distill",))
    assert len(lines) == 1 and lines[0].startswith(f"data.train: {tmp_path}/broken.parquet: the first image: ")
    (tmp_path / "pairs.tar").write_bytes(tar_of(pairs))
    for data in ({}, {"data.train": str(tmp_path / "pairs.tar")}):
        assert problems({**data, "distill.batch_size": 64}, ("distill",))[0] == [
            "distill.batch_size: a step needs 64 samples, but the data has only 40"
        ]
    held = {"data.hold_out": 35, "data.train": str(tmp_path / "pairs.tar")}
    assert problems(held, ("distill",))[0] == ["distill.batch_size: a step needs 8 samples, but the data has only 5"]
    lines, _ = problems(held | {"data.hold_out": 40}, ("distill",))
    assert lines == [f"data.hold_out: data.hold_out is 40, but {tmp_path}/pairs.tar has only 40 samples"]
    lines, hint = problems({"data.train": str(points)}, ("distill",))
    assert lines == [f"distill: {points} contains embeddings, but an image tower or a teacher needs images"]
    for name in ("cat", "狗"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.png").write_bytes(pairs[0].image)
    lines, hint = problems({"data.train": str(tmp_path / "classes"), "data.validation": str(tmp_path / "classes")})
    assert [line.split(":")[0] for line in lines] == ["data.train", "data.validation"]
    assert "is a folder of class folders (cat, 狗), not of image-caption pairs" in lines[0] and "data.images" in hint


def test_texts_in_one_language_are_reported_also_where_there_are_images(
    problems: Any, pictures: list[Path], pairs: list[Pair], tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("".join(f"cat {number}\n" for number in range(40)), "utf-8")
    data = {"data.train": None, "data.images": str(pictures[0].parent), "data.texts": str(tmp_path / "words.txt")}
    sizes = {"distill.images_per_step": 1, "distill.texts_per_step": 8, "distill.losses": [{"kind": "embedding"}]}
    lines, hint = problems(data | sizes, ("distill",))
    assert lines == ["distill.captions.languages: there are no 'zh' captions in data.texts"] and "[en]" in hint
    languages = {"distill.captions.languages": ["en"]}
    assert problems(data | sizes | languages, ("distill",))[0] == []
    write_parquet(tmp_path / "zh.parquet", [replace(pair, en=()) for pair in pairs])
    data = {"data.train": str(tmp_path / "zh.parquet"), "data.texts": str(tmp_path / "words.txt")}
    lines, _ = problems(data | {"distill.losses": [{"kind": "cross_lingual"}]}, ("distill",))
    assert lines == ["distill.losses.0: the loss cross_lingual needs images or lines with captions in both languages"]


def test_a_run_directory_of_another_recipe_is_found_unless_it_is_made_again(
    whole_recipe: dict[str, Any], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    record(load(whole_recipe), run.root)
    run.model("distill").mkdir(parents=True)
    write_record(run.model("distill") / "dcclip.json", {"format": 2})
    changed_recipe = load(whole_recipe, values={"distill.steps": 4})
    with refused("run/distill was created with a different recipe: distill.steps was 3 and is now 4", "with --fresh"):
        check(changed_recipe, run, ALL)
    check(changed_recipe, run, ALL, fresh=True)
    check(changed_recipe, run, ("export",))  # which takes any model
    check(load(whole_recipe), run, ALL)


def test_pairs_that_are_to_be_collected_are_estimated_and_images_outside_of_their_folder_found(
    whole_recipe: dict[str, Any], pairs: list[Pair], tmp_path: Path
) -> None:
    for pair in pairs:
        folder, outside = (tmp_path / name / pair.key.split("-")[1] for name in ("形状 shapes", "outside"))
        for place in (folder, outside):
            place.mkdir(parents=True, exist_ok=True)
        (outside / f"{pair.key}.png").write_bytes(pair.image)
        (folder / f"{pair.key}.png").symlink_to(outside / f"{pair.key}.png")
    run = RunDir(tmp_path / "run")
    source = {"kind": "class_folders", "path": str(tmp_path / "形状 shapes")}
    values = {
        "data": {"train": "collect"},
        "collect.sources": [source],
        "distill.captions.languages": ["en"],
        "collect.filters": [],
    }
    recipe = {name: whole_recipe[name] for name in ("name", "teacher", "student", "distill")}
    stages: tuple[StageName, ...] = ("collect", "distill")
    with refused("collect.sources: none of the 40 pairs passed: 40 image-outside", "allow_outside"):
        api.run(recipe, sets=values, out=tmp_path / "runs/new")
    assert not (tmp_path / "runs").exists()
    values["collect.sources"] = [source | {"allow_outside": True}]
    (before,) = check(load(recipe, values=values), run, stages)
    api.collect(recipe, sets=values, out=run.root, workers=1)
    (after,) = check(load(recipe, values=values), run, stages)
    assert before.previews["pairs"].samples == 40 and before.previews["pairs"].image
    write_parquet(tmp_path / "zh.parquet", [replace(pair, en=()) for pair in pairs])
    values |= {"data": {"train": "collect", "validation": str(tmp_path / "zh.parquet")}}
    with refused(
        "validate_every_steps: .*zh.parquet: no pair has a caption in en", "use pairs that have such captions"
    ):
        check(load(recipe, values=values | {"distill.validate_every_steps": 1}), RunDir(tmp_path / "new"), stages)
    kept_count = json.loads((run.root / "collect/manifest.json").read_bytes())["pairs"]["kept"]
    assert len(after.previews["pairs"].captions) == kept_count > 0
