"""Samples that models are compared on: a fixed part of the recipe's images and texts."""

from pathlib import Path

import pytest

from dcclip_cli.data.options import DataOptions
from dcclip_cli.errors import DcclipError
from dcclip_cli.exporters.samples import Samples, recipe_samples, samples_from


@pytest.fixture
def data(pictures: list[Path], tmp_path: Path) -> DataOptions:
    """Five pictures, and twenty lines of which every fourth is English."""
    lines = [f"第{number}个" if number % 4 else f"number {number}" for number in range(20)]
    (tmp_path / "lines.txt").write_text("\n".join(lines), "utf-8")
    return DataOptions(images=str(pictures[0].parent), texts=str(tmp_path / "lines.txt"))


def samples(data: DataOptions, count: int) -> Samples:
    return samples_from(recipe_samples(data, "train"), count)


def test_images_are_matched_with_as_many_texts_of_each_language_at_most(data: DataOptions) -> None:
    chinese, english = samples(data, 4).labels  # of the lines 0, 3, 5, 8, 11, 14, 16, 19; of 3, 5, 11, 14, 19 four
    assert chinese == ["第14个", "第19个", "第3个", "第5个"] and english == ["number 0", "number 16", "number 8"]
    chinese, english = samples(data, 128).labels
    assert (len(chinese), len(english)) == (15, 5)


def test_images_without_texts_are_matched_with_those_of_the_package(data: DataOptions) -> None:
    found = samples(data.model_copy(update={"texts": None}), 3)
    assert list(found.labels) == [found.texts] and len(found.images) == 3


def test_pairs_come_before_images(data: DataOptions, pairs_file: Path) -> None:
    found = samples(data.model_copy(update={"train": str(pairs_file)}), 128)
    assert (found.source, len(found.images), len(found.labels[0])) == ("train.parquet", 40, 40)


def test_images_are_read_when_they_are_asked_for_and_a_broken_one_is_named(
    data: DataOptions, pictures: list[Path]
) -> None:
    pictures[1].write_bytes(b"no image")
    found = samples(data, 5).squares()
    assert found.images[0].size == (48, 48)
    with pytest.raises(DcclipError, match=rf"{pictures[1].name}: .* is not a readable image"):
        list(found.images)
