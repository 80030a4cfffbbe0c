"""What an export is calibrated and checked on: the recipe's own pairs, a folder of pictures, or made-up ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.data.collator import unaugmented
from dcclip_cli.data.dataset import PairDataset, open_pairs
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.eval import prompts
from dcclip_cli.model.preprocess import decode, flatten
from dcclip_cli.predict.images import find_images

# Short, long, mixed, and too long for any text tower: what a graph with a frozen length gets wrong.
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
    """What two models are compared on. `source` says where the images are from.

    `labels` are the texts that images are told apart by, a list for each language: a name and its translation lie so
    close together that changing one for the other would say nothing. `texts` are further ones of any kind.
    """

    source: str
    images: Sequence[Image.Image]
    labels: Sequence[Sequence[str]]
    texts: Sequence[str] = ()


def samples_from(path: Path | None, count: int = 128) -> Samples:
    """Up to `count` pictures, spread over a pairs file or a folder of pictures; made-up ones where `path` is None.

    Pairs bring their first captions in both languages. Made-up ones find a broken graph, but can't judge a rounded one.
    """
    if path is None:
        random = np.random.default_rng(0)
        noise = random.integers(0, 256, (16, 4, 4, 3), dtype=np.uint8)
        return Samples("made-up images", [Image.fromarray(small).resize((256, 256)) for small in noise], [TEXTS])
    if _is_pictures(path):
        return Samples(path.name, _pictures(path, count), [TEXTS])
    table = open_pairs(path)
    indices = _spread(len(table), count)
    labels = [several for several in _captions(table, indices) if several]
    return Samples(path.name, [unaugmented(table, index) for index in indices], labels or [TEXTS], TEXTS)


def calibration_pictures(path: Path, count: int) -> Sequence[Image.Image]:
    """Up to `count` pictures, spread over a pairs file or a folder of pictures. Raises DcclipError where none are."""
    if _is_pictures(path):
        return _pictures(path, count)
    table = open_pairs(path)
    return [unaugmented(table, index) for index in _spread(len(table), count)]


def calibration_texts(path: Path | None, count: int) -> Sequence[str]:
    """Up to `count` captions in each language from a pairs file, as many of ImageNet's names, some of all lengths."""
    names = prompts.read("imagenet").names
    texts = [*TEXTS, *(several[index] for several in names.values() for index in _spread(len(several), count))]
    if path is None or _is_pictures(path):
        return texts
    table = open_pairs(path)
    return texts + [caption for several in _captions(table, _spread(len(table), count)) for caption in several]


def batches(
    pictures: Sequence[Image.Image], preprocess: Callable[[Image.Image], np.ndarray], size: int = 16
) -> list[np.ndarray]:
    """Preprocessed pictures (B, 3, H, W)."""
    starts = range(0, len(pictures), size)
    return [np.stack([preprocess(picture) for picture in pictures[start : start + size]]) for start in starts]


def _captions(table: PairDataset, indices: Sequence[int]) -> list[list[str]]:
    return [
        sorted({caption for index in indices for caption in table.captions(language)[index][:1]})
        for language in LANGUAGES
    ]


def _is_pictures(path: Path) -> bool:
    return path.is_dir() and not any(path.glob("*.tar"))


def _pictures(path: Path, count: int) -> list[Image.Image]:
    files = list(find_images([str(path)]))
    return [flatten(decode(files[index])) for index in _spread(len(files), count)]


def _spread(length: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()
