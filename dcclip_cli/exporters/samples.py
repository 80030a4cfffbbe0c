"""Images and texts that an export is calibrated and checked on: from pairs, from a folder of images, or made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.data import prompts
from dcclip_cli.data.collator import unaugmented
from dcclip_cli.data.dataset import open_pairs, shards_at
from dcclip_cli.data.pair import LANGUAGES, PairDataset
from dcclip_cli.model.preprocess import decode, flatten
from dcclip_cli.predict.images import find_images

# Short, long, mixed, and too long for any text tower: these detect graphs with a frozen length.
TEXTS = (
    "猫",
    "cat",
    "一只狗",
    "a red car",
    "雪地里奔跑的两匹马",
    "two horses running through the snow",
    "T恤 and 牛仔裤",
    "热气腾腾的 Nürnberger 香肠，配酸菜！",
    "a photo of " + "very " * 100 + "old trees",
    "一张" + "很" * 200 + "旧的照片",
)


@dataclass(frozen=True)
class Samples:
    """The samples that two models are compared on. `source` names the origin of the images.

    `labels` are the texts that images are matched with, one list per language: a name and its translation have such
    similar embeddings that exchanging them would mean nothing. `texts` are further ones of any kind.
    """

    source: str
    images: Sequence[Image.Image]
    labels: Sequence[Sequence[str]]
    texts: Sequence[str] = TEXTS

    def squares(self) -> Samples:
        """The same with the middle squares of the images, which leave nothing to crop."""
        return replace(self, images=[_square(image) for image in self.images])


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def samples_from(given: Path | PairDataset | None, count: int = 128) -> Samples:
    """The samples in pairs, or in a path of pairs or images; made-up images if None is given.

    Made-up images detect a broken graph, but not rounding errors.
    """
    if given is None:
        random = np.random.default_rng(0)
        noise = random.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
        return Samples("made-up images", [Image.fromarray(small).resize((256, 256)) for small in noise], [TEXTS])
    images, captions = images_and_captions(given, count)
    name = Path(given if isinstance(given, Path) else given.path).name
    return Samples(name, images, [several for several in captions if several] or [TEXTS])


def images_and_captions(given: Path | PairDataset, count: int) -> tuple[list[Image.Image], list[list[str]]]:
    """Up to `count` images, evenly spaced in pairs, or in a path of pairs or images. Raises DcclipError if it has none.

    For pairs also their first captions, as one list per language.
    """
    if isinstance(given, Path) and given.is_dir() and not shards_at(given):
        files = list(find_images([str(given)]))
        return [flatten(decode(files[index])) for index in _evenly_spaced(len(files), count)], []
    pairs = open_pairs(given) if isinstance(given, Path) else given
    indices = _evenly_spaced(len(pairs), count)
    captions = (pairs.captions(language) for language in LANGUAGES)
    first = [sorted({text for index in indices for text in several[index][:1]}) for several in captions]
    return [unaugmented(pairs, index) for index in indices], first


def calibration_texts(count: int) -> list[str]:
    """TEXTS, and per language up to `count` of ImageNet's class names."""
    names = prompts.read("imagenet").names.values()
    return [*TEXTS, *(several[index] for several in names for index in _evenly_spaced(len(several), count))]


def _evenly_spaced(length: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
