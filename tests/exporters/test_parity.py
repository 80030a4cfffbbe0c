"""The comparison of an export with its model detects errors, on a fixed part of the recipe's images and texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.options import DataOptions
from dcclip_cli.exporters.parity import TOWERS, Parity, ParityTest
from dcclip_cli.exporters.samples import Samples, recipe_samples, samples_from


class Letters:
    """An encoder of texts by their first and last letter; `frozen` cuts every text, as a graph of one length would."""

    def __init__(self, frozen: int | None = None) -> None:
        self._frozen = frozen

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32).transpose(2, 0, 1)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        return _unit(pixels.mean(axis=(2, 3))[:, :2])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        cut = [text[: self._frozen] for text in texts]
        return _unit(np.asarray([[ord(text[0]), ord(text[-1])] for text in cut], np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def compared(original: Any, exported: Any, samples: Samples) -> Parity:
    on = ParityTest(samples)
    before, after = ({tower: on.embed(model, tower) for tower in TOWERS} for model in (original, exported))
    return on.parity(before, after)


SAMPLES = Samples(
    "drawn",
    [Image.new("RGB", (2, 2), colour) for colour in ((255, 10, 0), (10, 255, 0), (99, 99, 0))],
    [["ab", "ba"], ["a猫", "狗b"]],
    ["一只狗z"],
)


class Longer(Letters):
    """The same but for the last digits of a float, which are higher for longer texts."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return super().encode_texts(texts) + np.asarray([[3e-7 * len(text)] for text in texts], np.float32)


def test_texts_that_the_model_cannot_tell_apart_count_as_equal() -> None:
    samples = Samples(SAMPLES.source, SAMPLES.images, [["ab", "axb", "ba", "猫x狗", "猫狗"]])
    original = Letters()
    longer = Longer()
    images = [original.encode_pixels(original.preprocess(image)[np.newaxis]) for image in samples.images]
    ranked = [model.encode_texts(samples.labels[0]) @ np.concatenate(images).T for model in (original, longer)]
    assert ranked[0].argmax(axis=0).tolist() != ranked[1].argmax(axis=0).tolist()
    assert compared(original, longer, samples).agreement == 1


def test_a_frozen_length_is_detected() -> None:
    parity = compared(Letters(), Letters(frozen=1), SAMPLES)
    assert parity.text_max_difference > 0.5 and parity.image_max_difference == 0
    assert parity.text_centred_cosine < 0.9


@pytest.fixture
def data(pictures: list[Path], tmp_path: Path) -> DataOptions:
    """Five pictures, and twenty lines of which every fourth is English."""
    lines = [f"第{number}个" if number % 4 else f"number {number}" for number in range(20)]
    (tmp_path / "lines.txt").write_text("\n".join(lines), "utf-8")
    return DataOptions(images=str(pictures[0].parent), texts=str(tmp_path / "lines.txt"))


def samples(data: DataOptions, count: int) -> Samples:
    return samples_from(recipe_samples(data, "train"), count)


def test_images_without_texts_are_matched_with_the_names_of_imagenets_classes(data: DataOptions) -> None:
    drawn = samples(data.model_copy(update={"texts": None}), 3)
    assert [(len(names), names[1]) for names in drawn.labels] == [(1000, "金鱼"), (1000, "goldfish")]
    assert len(drawn.images) == 3


def test_pairs_come_before_images_unless_they_are_embeddings(data: DataOptions, pairs_file: Path, points: Path) -> None:
    drawn = samples(data.model_copy(update={"train": str(pairs_file)}), 128)
    assert (drawn.source, len(drawn.images), len(drawn.labels[0])) == ("train.parquet", 40, 40)
    assert len(samples(data.model_copy(update={"train": str(points)}), 128).images) == 5
    assert samples(DataOptions(train=str(points)), 128).source == "made-up images"


def test_images_are_read_when_they_are_asked_for_and_the_next_replaces_a_broken_one(
    data: DataOptions, pictures: list[Path]
) -> None:
    pictures[1].write_bytes(b"no image")
    drawn = samples(data, 5).squares()
    assert drawn.images[0].size == (48, 48)
    assert [image.tobytes() for image in drawn.images[1:3]] == [drawn.images[2].tobytes()] * 2
    for picture in pictures:
        picture.write_bytes(b"no image")
    with pytest.raises(DcclipError, match=rf"{pictures[1].name}: .* is not a readable image"):
        drawn.images[1]
