"""Image files are found by names, folders, globs and lists, read ahead, and embedded in their order."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.inference.images import embed, find_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.txt", "下/猫.JPG", "下/更下/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_globs_and_listed_lines_mean_their_files(folder: Path) -> None:
    paths = [path.relative_to(folder).as_posix() for path in find_images([str(folder)])]
    assert paths == ["a.png", "下/更下/c.webp", "下/猫.JPG"]
    assert [path.name for path in find_images([f"{folder}/**/猫*"])] == ["猫.JPG"]
    listed = [f"{folder}/a.png\n", "\n", f"{folder}/下\r\n", "-\n"]
    assert [path.name for path in find_images(["-"], listed)] == ["a.png", "c.webp", "猫.JPG"]


def test_a_name_is_taken_as_it_is_even_if_it_looks_like_a_glob(folder: Path) -> None:
    (folder / "[1].png").touch()
    assert [path.name for path in find_images([f"{folder}/[1].png", f"{folder}/no.png"])] == ["[1].png", "no.png"]


def test_a_folder_without_images_and_a_glob_without_files_are_refused(folder: Path) -> None:
    (folder / "空").mkdir()
    with pytest.raises(DcclipError, match="空 contains no images"):
        list(find_images([str(folder / "空")]))
    with pytest.raises(DcclipError, match=r"no file matches .*狗"):
        list(find_images([f"{folder}/狗*.png"]))


class Brightness:
    """A model whose embedding is an image's first pixel; `batches` are the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32)[:1, 0, :1]

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        return pixels[:, 0]


def read(number: int) -> Image.Image:
    if number % 5 == 3:
        raise DcclipError(f"{number} is broken", "fix it")
    return Image.new("RGB", (1, 1), (number, 0, 0))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_results_keep_their_order_with_errors_among_them(batch_size: int) -> None:
    model: Any = Brightness()
    embeddings = dict(embed(model, range(12), read, batch_size))
    assert list(embeddings) == list(range(12))
    for number, result in embeddings.items():
        if number % 5 == 3:
            assert isinstance(result, DcclipError) and result.what == f"{number} is broken"
        else:
            assert not isinstance(result, DcclipError) and result.tolist() == [number]
    assert sum(model.batches) == 10


def test_no_more_than_three_batches_are_read_ahead() -> None:
    begun, lock = 0, threading.Lock()

    def count(number: int) -> Image.Image:
        nonlocal begun
        with lock:
            begun += 1
        return read(0)

    model: Any = Brightness()
    results = embed(model, iter(range(1000)), count, 4)
    next(results)
    assert begun <= 12
    results.close()  # type: ignore[attr-defined]
