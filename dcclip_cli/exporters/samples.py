"""Images and texts that an export is calibrated and checked on: from pairs, from images and texts,
or made up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image

from dcclip_cli.data import prompts
from dcclip_cli.data.dataset import recipe_pairs
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import LANGUAGES, ConcatDataset, Lazy, PairDataset
from dcclip_cli.data.unpaired import open_texts, recipe_images
from dcclip_cli.model.preprocess import flatten

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

    `labels` are the texts that images are matched with, one list per language: a name and its
    translation have such similar embeddings that exchanging them would mean nothing. `texts` are
    further ones of any kind. Images of data are decoded when they are asked for: photographs take
    40 MB each.
    """

    source: str
    images: Sequence[Image.Image]
    labels: Sequence[Sequence[str]]
    texts: Sequence[str] = TEXTS

    def squares(self) -> Self:
        """The same with the middle squares of the images, which leave nothing to crop."""

        def square(place: int) -> Image.Image:
            image = self.images[place]
            side = min(image.size)
            x, y = ((length - side) // 2 for length in image.size)
            return image.crop((x, y, x + side, y + side))

        return replace(self, images=Lazy(len(self.images), square))


def recipe_samples(
    data: DataOptions | None, *kinds: Literal["train", "validation"]
) -> PairDataset | None:
    """The pairs with images of the first of these kinds in a recipe's data, else its images and
    texts, or None.
    """
    if data is None:
        return None
    for pairs in (recipe_pairs(data, kind) for kind in kinds):
        if pairs and pairs.embeddings is None:
            return pairs
    images = recipe_images(data, kinds[0])
    if images is None or data.texts is None:
        return images
    return ConcatDataset([images, open_texts(data.texts, data.columns)])


def samples_from(pairs: PairDataset | None, count: int = 128) -> Samples:
    """The samples in pairs, or in images and texts; for None made-up images, which detect a broken
    graph only.
    """
    if pairs is None:
        random = np.random.default_rng(0)
        noise = random.integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
        return Samples(
            "made-up images",
            [Image.fromarray(small).resize((256, 256)) for small in noise],
            [TEXTS],
        )
    images, captions = images_and_captions(pairs, count)
    names_by_language = prompts.read(
        "imagenet"
    ).names.values()  # all: most photographs then have a clear best text
    return Samples(Path(pairs.path).name, images, [*filter(None, captions)] or [*names_by_language])


def images_and_captions(
    pairs: PairDataset, count: int
) -> tuple[Sequence[Image.Image], list[list[str]]]:
    """Up to `count` images, evenly spaced, and as one list per language their first captions.

    Images that are followed by texts have none: up to `count` of these texts per language, evenly
    spaced. In place of a damaged image without captions, the next of the images is used. Raises
    DcclipError where all are damaged.
    """
    indices = captioned = _evenly_spaced(pairs.num_images, count)
    if texts := len(pairs) - pairs.num_images:
        captioned = [
            pairs.num_images + row for row in _evenly_spaced(texts, count * len(LANGUAGES))
        ]
    captions = []
    for captions_by_index in map(pairs.captions, LANGUAGES):
        first = [text for index in captioned for text in captions_by_index[index][:1]]
        captions.append(sorted({first[place] for place in _evenly_spaced(len(first), count)}))

    def image(place: int) -> Image.Image:
        damaged = dict[int, str]()
        for index in (*indices[place:], *indices[:place]):
            picture = pairs.decoded(index, unreadable=damaged)
            if index not in damaged:
                return flatten(picture)
        return flatten(pairs.decoded(indices[place]))  # raises its error

    return Lazy(len(indices), image), captions


def calibration_texts(count: int) -> list[str]:
    """TEXTS, and per language up to `count` of ImageNet's class names."""
    names = prompts.read("imagenet").names.values()
    return [
        *TEXTS,
        *(classes[index] for classes in names for index in _evenly_spaced(len(classes), count)),
    ]


def _evenly_spaced(length: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
