"""Pixels of training images: decoded, augmented and resized as uint8 in the loader, normalized on
the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image

from dcclip_cli.data.options import Augment
from dcclip_cli.model.preprocess import Preprocessing

if TYPE_CHECKING:
    from dcclip_cli.model.towers import Towers

Preprocess = Callable[[Image.Image], np.ndarray]
Kept = TypeVar("Kept", Image.Image, tuple[np.ndarray, ...])

VERSION = "uint8"  # of this file, in the keys of what is computed from its pixels
CACHE_BYTES = 256_000_000  # of image pixels in each loader process
_WORTH_KEEPING = 0.1  # fraction of the images that has to fit into a cache
_TORCH_RESIZES = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Uint8Pixels:
    """An image as a tower takes it, before normalization: uint8 (3, size, size), in memory as
    (size, size, 3).

    torch resizes it, four times as fast as Pillow and to the same levels but for one in 200 that
    is one of 255 apart. Where it resizes rows first and Pillow columns, or enlarges, levels are up
    to two apart (tests/data/test_pixels.py).
    """

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> np.ndarray:
        settings = self.preprocessing
        side = self.preprocessing.size
        if settings.interpolation not in _TORCH_RESIZES or image.size == (side, side):
            return np.asarray(settings.resize(image)).transpose(2, 0, 1)
        (width, height), (column, row) = settings.placement(*image.size)
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            pixels, (height, width), mode=settings.interpolation, antialias=True
        )
        square = resized[0].permute(1, 2, 0).numpy()[row : row + side, column : column + side]
        return np.ascontiguousarray(square).transpose(2, 0, 1)  # torch would copy byte by byte


def training_preprocess(towers: Towers) -> Preprocess:
    """What makes a tower's pixels in training: uint8, or the library's own floats where no
    Preprocessing does the same.

    Evaluation and export use `towers.preprocess`, which resizes with Pillow.
    """
    if towers.preprocessing is None:
        return towers.preprocess
    # Equal for towers that differ in what `normalized` does, so that pixels are made once for all
    # of these.
    return Uint8Pixels(replace(towers.preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3))


def normalized(pixels: torch.Tensor, preprocessing: Preprocessing | None) -> torch.Tensor:
    """Pixels of `training_preprocess` as the tower's float32 input, on their device; floats are
    left as they are.

    On the CPU bit for bit the arithmetic of Preprocessing.
    """
    if pixels.dtype != torch.uint8:
        return pixels
    assert preprocessing is not None
    levels, mean, std = _constants(preprocessing, pixels.device)
    return pixels.float().div_(levels).sub_(mean).div_(std)


@lru_cache(maxsize=16)
def _constants(preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    values = [[255.0] * 3, preprocessing.mean, preprocessing.std]
    return torch.tensor(values, dtype=torch.float32, device=device)[:, :, None, None]


def stacked(pixels: Sequence[np.ndarray]) -> torch.Tensor:
    """(B, 3, H, W) of B images' pixels, in memory as (B, H, W, 3): torch's channels_last."""
    if not pixels:
        return torch.zeros(0, 3, 1, 1)
    return torch.from_numpy(np.stack([image.transpose(1, 2, 0) for image in pixels])).permute(
        0, 3, 1, 2
    )


def draft_side(augment: Augment, preprocess: Sequence[Preprocess]) -> int:
    """The side from which a JPEG may be decoded at a half, a quarter or an eighth of its size; 0:
    never.

    What a crop leaves of it still has twice the pixels of the largest target.
    """
    sizes = [
        transform.preprocessing.size if isinstance(transform, Uint8Pixels) else 0
        for transform in preprocess
    ]
    if 0 in sizes or augment.blur:  # whose radius is in pixels of the image
        return 0
    smallest_part = math.sqrt(augment.crop) / max(
        1.0, *augment.scale
    )  # of an image's side that an augmented one has
    return math.ceil(2 * max(sizes) / smallest_part)


class ImageCache:
    """Keeps images, or their pixels, until `limit` bytes are in memory; later ones are made again
    each time.

    Nothing is evicted: an epoch asks for every image once, so the oldest is as good as any.
    Nothing is kept of data of which less than a tenth would fit. `unreadable` has the reasons, by
    index, of images that a white one replaces.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self.unreadable = dict[int, str]()
        self._kept: dict[Hashable, Image.Image | tuple[np.ndarray, ...]] = {}

    def get(self, key: Hashable, make: Callable[[], Kept], count: int = 1) -> Kept:
        """What has this key, from `make` where it is not in the cache; `count`: keys that an epoch
        asks for.

        Callers must not change it.
        """
        value = self._kept.get(key)
        if value is None:
            value = make()
            size = _bytes(value)
            if self._bytes + size <= self._limit and _WORTH_KEEPING * size * count <= self._limit:
                self._kept[key] = value
                self._bytes += size
        return value  # type: ignore[return-value]  # a key has one kind


def _bytes(kept: Image.Image | tuple[np.ndarray, ...]) -> int:
    if isinstance(kept, Image.Image):
        return kept.width * kept.height * len(kept.getbands())
    return sum(array.nbytes for array in kept)
