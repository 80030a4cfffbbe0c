"""What a stage takes, before it begins: rows that the teacher is still asked, steps, seconds and bytes in words."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dcclip_cli import api
from dcclip_cli.core.errors import translated
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.preview import Preview
from dcclip_cli.model.teachers import AltClipTeacher
from dcclip_cli.recipe.load import load
from dcclip_cli.recipe.preflight import check
from dcclip_cli.train.estimate import BlankStage, Pace, Rows, Times, lines, measure
from dcclip_cli.train.options import DistillOptions
from tests.conftest import SHAPES
from tests.train.jobs import ENVIRONMENT, Watch


@pytest.fixture
def stages(whole_recipe: dict[str, Any], tmp_path: Path) -> list[BlankStage]:
    """Distill and an align that uses the teacher as well, with the same augmentations."""
    values = {"align.losses": [{"kind": "embedding"}], "align.augmentations": 1, "align.steps": 3}
    return check(load(whole_recipe, values=values), RunDir(tmp_path / "run"), ("distill", "align"))


def test_a_stage_knows_its_steps_and_what_its_teacher_is_asked(stages: list[BlankStage]) -> None:
    distill, _ = stages
    assert (distill.name, distill.steps, distill.sizes) == ("distill", 3, {"pairs": 8})
    first, second, third = lines(distill, Times(0.5, [Pace(1.0, 0.5)]))
    assert first == "distill: 3 steps of 8 samples take about 2 s (0.5 s per step)"
    assert second.startswith("distill: the teacher encodes about 24 images and up to 48 texts: about 48 s")
    assert third.startswith("distill: disk space needed, approximately: teacher cache ")


def test_images_and_texts_are_estimated_and_counted_by_their_own_numbers_per_step(
    whole_recipe: dict[str, Any], pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines.tsv").write_text("".join(f"{zh}\t{en}\n" for en, zh in SHAPES.items()), "utf-8")
    recipe = {name: value for name, value in whole_recipe.items() if name not in ("align", "eval", "export")}
    recipe["data"] = {"images": str(pictures[0].parent), "texts": str(tmp_path / "lines.tsv")}
    own_options = {"losses": [{"kind": "embedding"}], "images_per_step": 3, "texts_per_step": 2, "augmentations": 20}
    recipe["distill"] = recipe["distill"] | own_options  # batch_size: 8 is for pairs
    (stage,) = check(load(recipe), RunDir(tmp_path / "run"), ("distill",))
    first, second, _ = lines(stage, Times(0.5, [Pace(1.0, 0.5)]))
    assert first.startswith("distill: 3 steps of 5 samples ")
    assert second.startswith("distill: the teacher encodes about 9 images and up to 12 texts: ")
    watch = Watch()
    api.distill(recipe, out=tmp_path / "run", progress=watch)
    (computed,) = (line for line in watch.said if line.startswith("teacher: features"))
    assert computed.endswith("computed 9 images, 12 captions") and "图片 9，描述 12" in translated(computed, "zh")
    assert stage.remaining_rows(0) == Rows(0, 0)  # the cache has them
    texts = replace(stage, options=stage.options.model_copy(update={"teacher_cache": "texts"}))
    assert texts.remaining_rows(0) == Rows(9, 0) and texts.cache_bytes == 0  # images pass through the teacher in steps
    monkeypatch.setenv("DCCLIP_CACHE", str(tmp_path / "new"))
    assert [pace and pace.text_s > 0 for pace in measure(texts).teachers] == [True]
    _, second, _ = lines(texts, Times(0.5, [Pace(1.0, 0.5)]))
    assert second == "distill: the teacher encodes about 0 images and up to 12 texts: about 6 s"
    live = replace(stage, options=stage.options.model_copy(update={"teacher_cache": False}))
    batch = texts.collator.batch(next(texts.training.sampler(0, 1)))
    outputs = [blank.features[0].features(batch) for blank in (texts, live)]
    assert torch.equal(outputs[0].image.embedding, outputs[1].image.embedding)
    assert not torch.equal(outputs[0].texts["zh"].embedding, outputs[1].texts["zh"].embedding)  # as from the cache


# Prints what --check predicts of a run's peak memory, and that peak.
PEAKS = """
import sys
from pathlib import Path
from dcclip_cli import api
from dcclip_cli.core.machine import peak_memory_bytes
from dcclip_cli.recipe.load import load
from dcclip_cli.recipe.preflight import check
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.train.estimate import measure
recipe, out = map(Path, sys.argv[1:])
[stage] = check(load(recipe), RunDir(out), ("distill",))
print(measure(stage).peak_bytes)
api.distill(recipe, out=out)
print(peak_memory_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_the_peak_memory_of_a_run_with_a_live_teacher_in_parts_is_predicted_within_15_percent(
    whole_recipe: dict[str, Any], student_section: dict[str, Any], tmp_path: Path
) -> None:
    student_section["image"]["size"] = 192
    options = {"batch_size": 40, "accumulate": 2, "teacher_cache": False, "precision": "fp32", "workers": 1}
    recipe = whole_recipe | {"student": student_section, "distill": whole_recipe["distill"] | options}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-c", PEAKS, str(tmp_path / "recipe.yaml"), str(tmp_path / "run")]
    ran = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    predicted, peak = map(float, ran.stdout.split())
    assert predicted == pytest.approx(peak, rel=0.15), ran.stderr


def test_a_step_that_does_not_fit_is_named_with_the_parts_that_do(stages: list[BlankStage]) -> None:
    times = Times(0.5, peak_bytes=3e9, parts=4)
    _, second, third, _ = lines(stages[0], times)
    assert second == "distill: peak memory of a process about 3.0 GB"
    assert third == "warning: distill: a step does not fit in memory: set accumulate: 4, or a smaller images_per_part"
    too_large = [*lines(stages[0], replace(times, peak_bytes=1e15, parts=None))]
    assert any("set accumulate: 2, or" in line for line in too_large)


@pytest.mark.parametrize("case", ["start", "embeddings", "frozen"])
def test_the_step_of_a_model_of_embeddings_and_of_frozen_batch_norms_is_measured(
    case: str, whole_recipe: dict[str, Any], student_section: dict[str, Any], pairs: list[Pair], model_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    many = [replace(pair, key=f"{pair.key}{copy}") for copy in range(20) for pair in pairs]
    write_parquet(tmp_path / "many.parquet", many)
    if case == "embeddings":
        table = pq.read_table(tmp_path / "many.parquet").drop_columns(["image"])
        width = json.loads((model_folder / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
        pq.write_table(
            table.append_column("embedding", [np.ones((len(many), width)).tolist()]), tmp_path / "many.parquet"
        )
    recipe: dict[str, Any] = {"name": case, "data": {"train": str(tmp_path / "many.parquet")}}
    if case == "frozen":  # ten steps in a row that are not finite would end the measurement
        student_section["image"] |= {"timm": "mobilenetv3_small_050", "size": 32}
        options = {"batch_size": 512, "freeze_batch_norms": True, "precision": "fp32"}
        recipe |= {"teacher": whole_recipe["teacher"], "student": student_section}
        recipe["distill"] = whole_recipe["distill"] | options
    else:
        recipe["align"] = whole_recipe["align"] | {"start": str(model_folder)}
        recipe["align"] |= {"lock": "image"} if case == "embeddings" else {}
    [stage] = check(load(recipe), RunDir(tmp_path / "run"), ("distill",) if case == "frozen" else ("align",))
    assert (measure(stage).step_s or 0) > 0


def test_without_the_teachers_files_its_time_and_that_of_a_step_are_not_known(stages: list[BlankStage]) -> None:
    distill = replace(stages[0], teacher=AltClipTeacher(model="BAAI/AltCLIP-没有"), blank_teachers=[None])
    assert (times := measure(distill)) == Times(None, [None])
    assert all("is unknown without" in line for line in [*lines(distill, times)][:2])


@pytest.mark.parametrize("teacher", ["altclip", "siglip"])
def test_captions_longer_than_the_texts_of_student_and_teacher_are_estimated_and_trained_on(
    whole_recipe: dict[str, Any], pairs: list[Pair], tmp_path: Path, request: pytest.FixtureRequest, teacher: str
) -> None:
    long = [replace(pair, zh=("一张红色的圆的图片" * 12,), en=("a picture of a red circle " * 12,)) for pair in pairs]
    write_parquet(tmp_path / "long.parquet", long)
    folder = str(request.getfixturevalue(f"{teacher}_folder"))
    values = {"teacher": {"kind": "transformers", "model": folder}, "data.train": str(tmp_path / "long.parquet")}
    recipe = load(whole_recipe, values=values)
    distill, align = check(recipe, RunDir(tmp_path / "run"), ("distill", "align"))
    assert all(stage.tokens > 77 > stage.towers.context_length for stage in (distill, align))
    times = measure(distill)
    assert times.step_s and all(pace and pace.image_s > 0 < pace.text_s for pace in times.teachers)
    assert api.distill(recipe, out=tmp_path / "run").metrics


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"steps": 10, "batch_size": 8}, Rows(80 + 80, 160)),  # of 10 steps
        ({"steps": 10_000_000, "batch_size": 8}, Rows(4_000_000 + 80, 4_000_000)),
        ({"epochs": 9, "batch_size": 10, "images_per_step": 0, "captions": {"first": 1.0}}, Rows(4_000_000, 2_000_000)),
    ],
)
def test_rows_are_those_that_steps_reach_and_captions_that_are_chosen(
    stages: list[BlankStage], options: dict[str, Any], rows: Rows
) -> None:
    pairs = Preview(1_000_000, [{"zh": ("猫", "一只猫", "猫咪"), "en": ("cat",)}])
    previews = {"pairs": pairs, "images": Preview(20, [{"zh": (), "en": ()}])}
    chosen = DistillOptions.model_validate({"augmentations": 4} | options)
    data = DataOptions(train="对", images="图")
    stage = replace(stages[0], options=chosen, data=data)
    stage.previews = {kind: previews[kind] for kind in stage.sizes}
    assert stage.rows == rows


def test_an_epoch_is_one_of_the_first_kind_of_data_and_two_checkpoints_fit_on_disk(stages: list[BlankStage]) -> None:
    sizes: dict[str, Any] = {"batch_size": 64, "texts_per_step": 7}
    best = DistillOptions(epochs=1.5, ema=0.9, keep="best", validate_every_steps=1, **sizes)
    previews = {"pairs": Preview(1_000, []), "texts": Preview(7, [])}
    stage = replace(stages[0], options=best, data=DataOptions(train="对", texts="词"), previews=previews)
    assert stage.steps == 23  # 1.5 times 15
    parameters = stage.towers.parameters_count()
    assert (stages[0].run_bytes, stage.run_bytes) == (parameters * 4 * 7, parameters * 4 * 10)
