"""What a stage takes, before it begins: rows that the teacher is still asked, steps, seconds and bytes in words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcclip_cli import api
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.recipe.load import load
from dcclip_cli.recipe.preflight import check
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.estimate import Pace, Rows, StageWork, Times, lines, measure
from tests.conftest import SHAPES
from tests.train.jobs import Watch


@pytest.fixture
def works(whole_recipe: dict[str, Any], tmp_path: Path) -> list[StageWork]:
    """The work of distill and of an align that uses the teacher as well, with the same augmentations."""
    values = {"align.losses": [{"kind": "embedding"}], "align.augmentations": 1, "align.steps": 3}
    return check(load(whole_recipe, values=values), RunDir(tmp_path / "run"), ("distill", "align"))


def test_a_stage_knows_its_steps_and_what_its_teacher_is_asked(works: list[StageWork]) -> None:
    distill, align = works
    assert (distill.stage, distill.steps, distill.sizes, distill.rows.images) == ("distill", 3, {"pairs": 8}, 24)
    before: dict[Any, Rows] = {}
    times = Times(0.5, [Pace(1.0, 0.5)])
    first, second = list(lines(distill, times, before)), list(lines(align, times, before))
    assert first[0] == "distill: 3 steps of 8 samples take roughly 2 s (0.5 s a step)"
    assert first[1].startswith("distill: the teacher encodes about 24 images and up to ")
    assert second[1].startswith("align: the teacher encodes about 0 images and up to 0 texts (of 24 and ")


def test_images_and_texts_are_estimated_and_counted_by_their_own_numbers_per_step(
    whole_recipe: dict[str, Any], pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "lines.tsv").write_text("".join(f"{zh}\t{en}\n" for en, zh in SHAPES.items()), "utf-8")
    recipe = {name: value for name, value in whole_recipe.items() if name not in ("align", "eval", "export")}
    recipe["data"] = {"images": str(pictures[0].parent), "texts": str(tmp_path / "lines.tsv")}
    own = {"losses": [{"kind": "embedding"}], "images_per_step": 3, "texts_per_step": 2, "augmentations": 20}
    recipe["distill"] = recipe["distill"] | own  # batch_size: 8 is for pairs
    (work,) = check(load(recipe), RunDir(tmp_path / "run"), ("distill",))
    first, second, _ = lines(work, Times(0.5, [Pace(1.0, 0.5)]), {})
    assert first.startswith("distill: 3 steps of 5 samples ")
    assert second.startswith("distill: the teacher encodes about 9 images and up to 12 texts: ")
    watch = Watch()
    api.distill(recipe, out=tmp_path / "run", progress=watch)
    (took, computed) = (line for line in watch.said if line.startswith(("teacher: ran", "teacher: features")))
    assert computed.endswith("computed 9 images, 12 captions")
    assert "in each of these 3 steps" in took and "saved" not in took  # every step had others


def test_of_hours_of_teacher_work_it_is_said_what_would_shorten_them(works: list[StageWork]) -> None:
    distill = replace(works[0], options=works[0].options.model_copy(update={"augmentations": 4}))
    said = list(lines(distill, Times(1.0, [Pace(3600.0, 0.0)]), {}))
    assert "24.0 h" in said[1] and "fewer augmentations (distill.augmentations is 4)" in said[2] and "GPU" in said[2]
    assert len(list(lines(distill, Times(1.0, [Pace(1.0, 0.0)]), {}))) == len(said) - 1


def test_where_the_teachers_files_are_not_here_its_time_and_that_of_a_step_are_not_known(
    works: list[StageWork],
) -> None:
    gone = replace(works[0].shapes, teachers=[None])
    teacher = works[0].teachers[0].model_copy(update={"model": "BAAI/AltCLIP-没有"})
    distill = replace(works[0], shapes=gone, teachers=[teacher])
    times = measure(distill)
    assert times == Times(None, [None])
    said = list(lines(distill, times, {}))
    assert all("is not known without" in line for line in said[:2])


def test_steps_and_teachers_are_measured(works: list[StageWork]) -> None:
    for work in works:
        times = measure(work)
        (pace,) = times.teachers
        assert times.step_s and pace and pace.image_s > 0 and pace.text_s > 0


@pytest.mark.parametrize("teacher", ["altclip", "chinese_clip", "siglip"])
def test_captions_longer_than_the_texts_of_student_and_teacher_are_estimated_and_trained_on(
    whole_recipe: dict[str, Any], pairs: list[Pair], tmp_path: Path, request: pytest.FixtureRequest, teacher: str
) -> None:
    long = [replace(pair, zh=("一张红色的圆的图片" * 12,), en=("a picture of a red circle " * 12,)) for pair in pairs]
    write_parquet(tmp_path / "long.parquet", long)
    folder = str(request.getfixturevalue(f"{teacher}_folder"))
    values = {"teacher": {"kind": "transformers", "model": folder}, "data.train": str(tmp_path / "long.parquet")}
    recipe = load(whole_recipe, values=values)
    for work in check(recipe, RunDir(tmp_path / "run"), ("distill", "align")):
        assert work.tokens > 77 > work.shapes.student.context_length
        times = measure(work)
        assert times.step_s and all(pace and pace.text_s > 0 for pace in times.teachers)
    assert api.distill(recipe, out=tmp_path / "run").metrics
