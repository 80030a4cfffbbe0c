"""What an export is calibrated and checked on: the recipe's own pairs, or made-up ones where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.data.batches import unaugmented
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.data.table import PairTable, open_pairs
from dcclip_cli.export.parity import Samples
from dcclip_cli.model.preprocess import Preprocessing

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


def from_pairs(path: Path, count: int = 128) -> Samples:
    """Up to `count` pictures of a pairs file, spread over it, with their first captions in both languages."""
    table = open_pairs(path)
    indices = _spread(table, count)
    first = [
        sorted({caption for index in indices for caption in table.captions(language)[index][:1]})
        for language in LANGUAGES
    ]
    labels = [several for several in first if several]
    return Samples(path.name, [unaugmented(table, index) for index in indices], labels or [TEXTS], TEXTS)


def made_up(count: int = 16) -> Samples:
    """Coloured clouds and a few words. Enough to find a broken graph, not to judge a quantised one."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return Samples("made-up images", [Image.fromarray(small).resize((256, 256)) for small in noise], [TEXTS])


def calibration_batches(
    path: Path, preprocess: Preprocessing, count: int, batch_size: int = 16
) -> Iterator[np.ndarray]:
    """Preprocessed pictures (B, 3, H, W), `count` in all, spread over a pairs file."""
    table = open_pairs(path)
    indices = _spread(table, count)
    for start in range(0, len(indices), batch_size):
        yield np.stack([preprocess(unaugmented(table, index)) for index in indices[start : start + batch_size]])


def _spread(table: PairTable, count: int) -> list[int]:
    return np.unique(np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)).tolist()
