"""Evaluation: right against an oracle, chance against itself, and equal to open_clip's own doing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.data.pair import LANGUAGES, Language, Pair
from dcclip_cli.data.table import write_parquet
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import Classes, LabelledImages
from dcclip_cli.eval.evaluate import EvalOptions, evaluate
from dcclip_cli.eval.result import save_results
from dcclip_cli.eval.zeroshot import classify, embed_images
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.progress import Silent


@dataclass
class Oracle:
    """Knows images by their grey value and texts by a table; counts the images that it has seen."""

    texts: dict[str, int]
    batches: list[int] = field(default_factory=list)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32)[None, :1, :1, 0]

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        return np.eye(4, dtype=np.float32)[pixels.ravel().astype(int)]

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[[self.texts[text] for text in texts]]


def _grey(count: int) -> LabelledImages:
    return LabelledImages("grey", count, lambda index: Image.new("RGB", (2, 2), (index % 4,) * 3), {})


def test_an_oracle_is_always_right_and_one_that_swaps_two_names_is_half_right() -> None:
    labels = np.arange(10) % 4
    oracle: Any = Oracle({"一张猫": 0, "一张狗": 1, "一张鸟": 2, "一张鱼": 3})
    with Silent().task("", 10) as task:
        embeddings = embed_images(oracle, _grey(10), range(10), 4, task)
    assert oracle.batches == [4, 4, 2]
    right = Classes(("猫", "狗", "鸟", "鱼"), labels, ("一张{}",))
    assert classify(oracle, embeddings, labels, right) == {"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0}
    swapped = Classes(("狗", "猫", "鸟", "鱼"), labels, ("一张{}",))  # labels 0 and 1 are six of the ten
    found = classify(oracle, embeddings, labels, swapped)
    assert found == {"top1": 0.4, "top5": 1.0, "mean_per_class": 0.5}


@pytest.mark.parametrize("language", LANGUAGES)
def test_top1_equals_what_open_clip_alone_computes(
    model_folder: Path, pairs_file: Path, pairs: list[Pair], language: Language
) -> None:
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model_folder}")
    names = [pair.captions(language)[0] for pair in pairs]
    with torch.no_grad():
        images = model.eval().encode_image(
            torch.stack([transform(decode(pair.image)) for pair in pairs]), normalize=True
        )
        texts = model.encode_text(tokenizer(names), normalize=True)
    expected = float(((images @ texts.T).argmax(dim=1) == torch.arange(len(pairs))).float().mean())
    [found] = evaluate(
        models=[resolve(str(model_folder))], datasets=[str(pairs_file)], languages=[language], device="cpu"
    )
    assert found.value == pytest.approx(expected)
    assert (found.n, found.classes, found.metric, found.language) == (40, 40, "top1", language)


def test_a_result_is_written_whole_and_a_bundle_is_evaluated_like_its_model(
    model_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    from dcclip_cli.export.export import ExportOptions, export

    bundle = export(options=ExportOptions(), model=resolve(str(model_folder)), out=tmp_path / "bundle").folder
    references = [resolve(str(model_folder)), resolve(str(bundle))]
    results = evaluate(models=references, datasets=[str(pairs_file)], device="cpu")
    assert [(result.model, result.language) for result in results] == [
        ("tiny", "en"),
        ("tiny", "zh"),
        ("tiny-fp32", "en"),
        ("tiny-fp32", "zh"),
    ]
    assert results[0].metrics == results[2].metrics and results[1].metrics == results[3].metrics
    assert results[0].class_names_sha256 != results[1].class_names_sha256
    save_results(results, tmp_path / "eval")
    [first, *_] = json.loads((tmp_path / "eval/train.json").read_text("utf-8"))
    assert first["value"] == first["metrics"]["top1"] == results[0].value
    assert first["preprocessing"]["size"] == 64 and first["versions"]["numpy"] == np.__version__
    assert len(json.loads((tmp_path / "eval/summary.json").read_text("utf-8"))) == 4


def test_limit_takes_the_same_images_every_time(model_folder: Path, pairs_file: Path) -> None:
    asked: dict[str, Any] = {"models": [resolve(str(model_folder))], "datasets": [str(pairs_file)], "device": "cpu"}
    first, again = (evaluate(**asked, languages=["zh"], limit=7)[0] for _ in range(2))
    assert first.n == 7 and first.classes == 40 and first.metrics == again.metrics


def test_a_broken_image_stops_the_evaluation_and_is_named(
    model_folder: Path, pairs: list[Pair], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "坏.parquet", [pairs[0], Pair("broken", b"no image", zh=("猫",), en=("cat",))])
    with pytest.raises(DcclipError, match="data set 坏, image 1: image of 8 bytes is not a readable image"):
        evaluate(models=[resolve(str(model_folder))], datasets=[str(tmp_path / "坏.parquet")], device="cpu")


def test_two_data_sets_of_one_name_are_refused(model_folder: Path, pairs_file: Path) -> None:
    with pytest.raises(DcclipError, match="two data sets are called train"):
        evaluate(models=[resolve(str(model_folder))], datasets=[str(pairs_file)] * 2)


def test_a_recipe_must_name_a_data_set() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        EvalOptions(datasets=())
