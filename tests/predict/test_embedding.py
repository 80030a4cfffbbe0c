"""Pictures are read ahead, and come out one by one in their order."""

import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.predict.images import embed


class Brightness:
    """A model whose embedding is a picture's first pixel; it notes the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32)[:1, 0, :1]

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        return pixels[:, 0]


def read(number: int) -> Image.Image:
    if number % 5 == 3:
        raise DcclipError(f"{number} is broken", "mend it")
    return Image.new("RGB", (1, 1), (number, 0, 0))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_all_come_out_in_their_order_with_the_broken_ones_among_them(batch_size: int) -> None:
    model: Any = Brightness()
    found = dict(embed(model, range(12), read, batch_size))
    assert list(found) == list(range(12))
    for number, result in found.items():
        if number % 5 == 3:
            assert isinstance(result, DcclipError) and result.what == f"{number} is broken"
        else:
            assert not isinstance(result, DcclipError) and result.tolist() == [number]
    assert sum(model.batches) == 10


def test_no_more_than_three_batches_are_read_ahead() -> None:
    begun, seen = 0, threading.Lock()

    def count(number: int) -> Image.Image:
        nonlocal begun
        with seen:
            begun += 1
        return read(0)

    model: Any = Brightness()
    results = embed(model, iter(range(1000)), count, 4)
    next(results)
    assert begun <= 12
    results.close()  # type: ignore[attr-defined]
