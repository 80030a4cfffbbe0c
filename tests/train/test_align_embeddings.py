"""Alignment of a text tower to points in a locked image tower's space."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.data.options import DataOptions
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.predict.encoder import TorchEncoder
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.align import AlignOptions, align
from dcclip_cli.train.options import StageContext

ZH = ["猫", "狗", "红色的汽车", "自行车", "苹果", "大象", "钢琴", "飞机"]
EN = ["cat", "dog", "red car", "bicycle", "apple", "elephant", "piano", "airplane"]


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Eight words of each language, a translation in the same place, 16 wide."""
    zh, en = [[word, f"一张{word}的照片"] for word in ZH], [[word, f"a photo of a {word}"] for word in EN]
    table = pa.table({"key": EN, "embedding": np.eye(8, 16).tolist(), "zh": zh, "en": en})
    pq.write_table(table, tmp_path / "points.parquet")
    return tmp_path / "points.parquet"


def run(points: Path, student: dict[str, Any], root: Path, **options: Any) -> Path:
    given = {"start": "scratch", "steps": 60, "batch_size": 8, "warmup_steps": 5, "workers": 0, "lock": "image"}
    result = align(
        options=AlignOptions.model_validate({**given, "cosine": 5.0, "optimizer": {"lr": 1e-2}, **options}),
        context=StageContext(
            RunDir(root / "runs" / "points"),
            DataOptions(train=str(points)),
            student=StudentOptions.model_validate(student),
        ),
    )
    return result.model


def test_words_of_both_languages_are_pulled_to_their_points(
    points: Path, student_section: dict[str, Any], tmp_path: Path
) -> None:
    model = TorchEncoder(load_model(run(points, student_section, tmp_path)))
    for words in (ZH, EN):
        cosines = model.encode_texts(words) @ np.eye(8, 16).T
        assert cosines.argmax(axis=1).tolist() == list(range(8))
        assert cosines.diagonal().mean() > 0.9


def test_an_image_tower_that_is_not_locked_can_not_learn_from_points(
    points: Path, student_section: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DcclipError, match="contains embeddings instead of images") as error:
        run(points, student_section, tmp_path, lock=None)
    assert "lock: image" in error.value.hint


def test_points_of_another_width_than_the_space_are_refused(
    points: Path, student_section: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DcclipError, match="have 16 dimensions, the student's have 24") as error:
        run(points, student_section | {"embed_dim": 24}, tmp_path)
    assert error.value.hint == "set student.embed_dim: 16"
