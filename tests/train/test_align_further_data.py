"""Stage 2 with pictures and lines beside the pairs: what a student learnt from them is not forgotten."""

from pathlib import Path

import pytest
import torch

from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.model.model_dir import load_model
from dcclip_cli.model.preprocess import decode
from tests.train.jobs import Job, elsewhere, refused, run

LINES = [
    "紫色的小鱼",
    "白色的大树",
    "粉色的星星",
    "黄色的小船",
    "purple fish",
    "white tree",
    "pink star",
    "yellow boat",
]


@pytest.fixture
def further(aligning: Job, model_folder: Path, pairs: list[Pair], tmp_path: Path) -> Job:
    """Stage 2 on eight of the pairs, held to the model that it starts from, with the other pictures and eight lines."""
    write_parquet(tmp_path / "some.parquet", pairs[:8])
    (tmp_path / "pictures").mkdir()
    for pair in pairs[8:16]:
        (tmp_path / "pictures" / f"{pair.key}.png").write_bytes(pair.image)
    zh, en = LINES[:4], LINES[4:]
    (tmp_path / "lines.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(zh, en, strict=True)), "utf-8")
    aligning["data"] = {
        "train": str(tmp_path / "some.parquet"),
        "images": str(tmp_path / "pictures"),
        "texts": str(tmp_path / "lines.tsv"),
    }
    aligning["teacher"] = {"kind": "open_clip", "model": str(model_folder)}
    aligning["options"] |= {
        "losses": [{"kind": "embedding", "weight": 20}],
        "augment": {},
        "augmentations": 1,
        "steps": 12,
        "freeze_batch_norms": True,
    }
    return aligning


def drift(model: Path, start: Path, pictures: list[Pair]) -> tuple[float, float]:
    """1 - cosine between two models' embeddings: means over these pictures, and over LINES."""
    embeddings = []
    for towers in (load_model(start), load_model(model)):
        assert towers.preprocess is not None
        pixels = torch.stack([torch.from_numpy(towers.preprocess(decode(pair.image))) for pair in pictures])
        with torch.no_grad():
            image = towers.image_features(pixels).embedding
            text = towers.text_features(towers.tokenize(LINES)).embedding
        embeddings.append((image, text))
    cosine = torch.nn.functional.cosine_similarity
    (image, text), (other_image, other_text) = embeddings
    return 1 - float(cosine(image, other_image).mean()), 1 - float(cosine(text, other_text).mean())


@pytest.mark.parametrize("cache", [True, False])
def test_images_and_texts_without_partners_stay_where_the_teacher_has_them(
    further: Job, model_folder: Path, pairs: list[Pair], cache: bool
) -> None:
    further["options"]["teacher_cache"] = cache
    without = drift(run(further).model, model_folder, pairs[8:16])
    pictures = run(elsewhere(further, "with pictures", {"images_per_step": 8}))
    lines = run(elsewhere(further, "with lines", {"texts_per_step": 4}))
    assert drift(pictures.model, model_folder, pairs[8:16])[0] < 0.9 * without[0]
    assert drift(lines.model, model_folder, pairs[8:16])[1] < 0.9 * without[1]
    assert {"image_zh", "image_en", "embedding"} <= set(lines.metrics)


def test_the_contrast_is_of_pairs_alone(further: Job) -> None:
    further["options"] |= {"steps": 1, "losses": [{"kind": "embedding", "weight": 0}]}
    alone, beside = (
        run(elsewhere(further, name, options)).metrics
        for name, options in (("alone", {}), ("beside", {"images_per_step": 4, "texts_per_step": 2}))
    )
    for term in ("image_zh", "image_en"):
        assert beside[term] == pytest.approx(alone[term], abs=1e-5)


@pytest.mark.parametrize(
    ("data", "options", "said", "hint"),
    [
        (
            {"images": None},
            {"images_per_step": 4},
            "align.images_per_step is 4, but there is no data.images",
            "data.im",
        ),
        ({"texts": None}, {"texts_per_step": 4}, "align.texts_per_step is 4, but there is no data.texts", "data.texts"),
        ({}, {"texts_per_step": 4, "losses": []}, "the contrastive loss uses pairs only", "add a distillation loss"),
        ({"train": None}, {}, "data has no pairs, and align matches images with captions", "data.train"),
    ],
)
def test_what_stage_2_can_make_nothing_of_is_refused(
    further: Job, data: Job, options: Job, said: str, hint: str
) -> None:
    further["data"] |= data
    with refused(said, hint):
        run(elsewhere(further, "other", options))
