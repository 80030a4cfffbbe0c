"""Alignment of a text tower to points in a locked image tower's space."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.predict.encoder import TorchEncoder
from tests.train.jobs import Job, elsewhere, refused, run

ZH = ["猫", "狗", "红色的汽车", "自行车", "苹果", "大象", "钢琴", "飞机"]
EN = ["cat", "dog", "red car", "bicycle", "apple", "elephant", "piano", "airplane"]


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Eight words of each language, a translation in the same place, 16 wide."""
    zh, en = [[word, f"一张{word}的照片"] for word in ZH], [[word, f"a photo of a {word}"] for word in EN]
    table = pa.table({"key": EN, "embedding": np.eye(8, 16).tolist(), "zh": zh, "en": en})
    pq.write_table(table, tmp_path / "points.parquet")
    return tmp_path / "points.parquet"


def on_points(aligning: Job, points: Path, student: Job) -> Job:
    options = {"start": "scratch", "steps": 60, "warmup_steps": 5, "lock": "image", "cosine": 5.0}
    return aligning | {
        "data": str(points),
        "student": student,
        "options": options | {"augment": {}, "optimizer": {"lr": 1e-2}},
    }


def test_words_of_both_languages_are_pulled_to_their_points(aligning: Job, points: Path, student_section: Job) -> None:
    model = TorchEncoder(load_model(run(on_points(aligning, points, student_section)).model))
    for words in (ZH, EN):
        cosines = model.encode_texts(words) @ np.eye(8, 16).T
        assert cosines.argmax(axis=1).tolist() == list(range(8))
        assert cosines.diagonal().mean() > 0.9


@pytest.mark.parametrize(
    ("width", "lock", "what", "hint"),
    [
        (16, None, "contains embeddings instead of images", "lock: image"),
        (24, "image", "have 16 dimensions, the student's have 24", "set student.embed_dim: 16"),
    ],
)
def test_an_image_tower_that_learns_and_a_space_of_another_width_are_refused(
    aligning: Job, points: Path, student_section: Job, width: int, lock: str | None, what: str, hint: str
) -> None:
    with refused(what, hint):
        run(elsewhere(on_points(aligning, points, student_section | {"embed_dim": width}), "other", {"lock": lock}))
