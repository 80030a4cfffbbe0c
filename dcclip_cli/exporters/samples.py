"""Images and texts that an export is calibrated and checked on: from pairs, from a folder of images, or made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.data.collator import unaugmented
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES, PairDataset
from dcclip_cli.eval import prompts
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
    texts: Sequence[str] = ()


def samples_from(path: Path | None, count: int = 128) -> Samples:
    """Up to `count` images, evenly spaced in a pairs file or a folder of images; made-up ones if `path` is None.

    Pairs add their first captions in both languages. Made-up images detect a broken graph, but not rounding errors.
    """
    if path is None:
        random = np.random.default_rng(0)
        noise = random.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
        return Samples("made-up images", [Image.fromarray(small).resize((256, 256)) for small in noise], [TEXTS])
    if _is_image_folder(path):
        return Samples(path.name, calibration_images(path, count), [TEXTS])
    pairs = open_pairs(path)
    indices = _evenly_spaced(len(pairs), count)
    labels = [several for several in _captions(pairs, indices) if several]
    return Samples(path.name, [unaugmented(pairs, index) for index in indices], labels or [TEXTS], TEXTS)


def calibration_images(path: Path, count: int) -> Sequence[Image.Image]:
    """Up to `count` images, evenly spaced in a pairs file or a folder of images. Raises DcclipError if it has none."""
    if _is_image_folder(path):
        files = list(find_images([str(path)]))
        return [flatten(decode(files[index])) for index in _evenly_spaced(len(files), count)]
    pairs = open_pairs(path)
    return [unaugmented(pairs, index) for index in _evenly_spaced(len(pairs), count)]


def calibration_texts(path: Path | None, count: int) -> Sequence[str]:
    """TEXTS, and per language up to `count` of ImageNet's class names and as many captions of a pairs file."""
    names = prompts.read("imagenet").names
    texts = [*TEXTS, *(several[index] for several in names.values() for index in _evenly_spaced(len(several), count))]
    if path is None or _is_image_folder(path):
        return texts
    pairs = open_pairs(path)
    captions = _captions(pairs, _evenly_spaced(len(pairs), count))
    return texts + [caption for several in captions for caption in several]


def batches(
    images: Sequence[Image.Image], preprocess: Callable[[Image.Image], np.ndarray], size: int = 16
) -> list[np.ndarray]:
    """Preprocessed images (B, 3, H, W)."""
    starts = range(0, len(images), size)
    return [np.stack([preprocess(image) for image in images[start : start + size]]) for start in starts]


def _captions(pairs: PairDataset, indices: Sequence[int]) -> list[list[str]]:
    return [
        sorted({caption for index in indices for caption in pairs.captions(language)[index][:1]})
        for language in LANGUAGES
    ]


def _is_image_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.glob("*.tar"))


def _evenly_spaced(length: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
