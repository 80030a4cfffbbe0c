"""Small data sets in the layouts of the published ones. Each image's colour encodes its label."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from tests.images import encode
from tests.tars import tar_bytes


def label_of(drawn: Image.Image) -> int:
    """The label encoded in an image."""
    pixel = drawn.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0]) + 256 * int(pixel[1])


def image(label: int) -> bytes:
    return encode(Image.new("RGB", (6, 4), (label % 256, label // 256, 7)))


def write(file: Path, content: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def class_folders(folder: Path, names: Sequence[str], suffix: str = ".png") -> None:
    """One image in a folder for each class."""
    for label, name in enumerate(names):
        write(folder / name / f"{label}{suffix}", image(label))


def wds(
    root: Path, split: str, truths: Sequence[bytes], suffix: str, names: Sequence[str] = (), shards: int = 2
) -> None:
    """As clip_benchmark_export_wds writes: classnames.txt, SPLIT/nshards.txt, SPLIT/0.tar, ..."""
    if names:
        write(root / "classnames.txt", "\n".join(names) + "\n")
    write(root / split / "nshards.txt", f"{shards}\n")
    numbers = np.array_split(np.arange(len(truths)), shards)
    for shard, shard_numbers in enumerate(numbers):
        members = {}
        for number in shard_numbers:
            members[f"s{number:07}.webp"] = image(int(number))
            members[f"s{number:07}{suffix}"] = truths[number]
        write(root / split / f"{shard}.tar", tar_bytes(members.items()))


def npy(vector: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, vector)
    return stream.getvalue()


def rows(image_column: str, **column: Sequence[object]) -> Dataset:
    """A data set of Hugging Face: an image for each value of the column, as {bytes, path}."""
    [values] = column.values()
    images = [{"bytes": image(number), "path": f"{number}.png"} for number in range(len(values))]
    table = {image_column: images, **{name: list(cells) for name, cells in column.items()}}
    return Dataset.from_dict(table).cast_column(image_column, ImageFeature())
