"""Every image of a test set through the image tower, once; every text through the text tower, once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli.data.files.reading import Fault
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.feature_cache import FeatureCache
from dcclip_cli.eval.loaders import Images
from dcclip_cli.predict.encoder import Encoder
from dcclip_cli.predict.images import embed_batches
from dcclip_cli.predict.zero_shot import class_means, fill, text_embeddings
from dcclip_cli.progress import Progress

# Indices, what reads an image, the batch size and the number of threads that read -> batches in order.
EmbedBatches = Callable[
    [Sequence[int], Callable[[int], Image.Image], int, int], Iterable[list[tuple[int, np.ndarray | DcclipError]]]
]


@dataclass(frozen=True)
class View:
    """How a data set wants its images to be seen, beside what the model does: see KnownSet."""

    squash: bool = False
    border: int = 0

    def of(self, preprocessing: dict[str, Any]) -> dict[str, Any]:
        """The record of a model's preprocessing with these steps before it."""
        mine = {"squash": self.squash, "border": self.border}
        return preprocessing | {name: value for name, value in mine.items() if value}

    def __call__(self, image: Image.Image, preprocessing: dict[str, Any]) -> Image.Image:
        if self.border:
            left, right, lower = self.border, image.width - self.border, image.height - self.border
            image = image.crop((left, left, max(right, left + 1), max(lower, left + 1)))
        if self.squash:
            size = preprocessing.get("size")
            side = int(size) if isinstance(size, int) else min(image.size)
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return image


@dataclass(frozen=True)
class Reader:
    """Reads an image by its number, as the data set wants it to be seen by a model with that preprocessing."""

    images: Images
    view: View
    preprocessing: dict[str, Any]

    def __call__(self, index: int) -> Image.Image:
        try:
            return self.view(self.images.picture(index), self.preprocessing)
        except Fault as fault:
            raise DcclipError(fault.drop.detail, "mend the file, or take it out of the data") from None


@dataclass(frozen=True)
class Embedded:
    """Embeddings (N, D) of length 1 of those of the images that could be read, by their `indices`, and the faults.

    `computed` of them went through the model now, which took `seconds`.
    """

    indices: np.ndarray
    vectors: np.ndarray
    faults: dict[int, str]
    computed: int
    seconds: float


def chosen(count: int, limit: int | None) -> np.ndarray:
    """A fixed random choice of at most `limit` of `count` images, in order."""
    wanted = np.arange(count)
    if limit is None or limit >= count:
        return wanted
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def embed_images(
    model: Encoder,
    images: Images,
    wanted: np.ndarray,
    view: View,
    cache: FeatureCache,
    progress: Progress,
    name: str,
    batch_size: int = 64,
    workers: int = 2,
    embed: EmbedBatches | None = None,
) -> Embedded:
    """The embeddings of the images `wanted`; `workers` threads read and scale the next ones while the model runs.

    `embed` is who runs the model, in this process if None.
    """
    preprocessing = view.of(dict(model.preprocessing))
    read = Reader(images, view, dict(model.preprocessing))
    embed = embed or functools.partial(embed_batches, model)
    key = {"model": model.fingerprint, "preprocessing": preprocessing, "images": images.stamp, "count": len(images)}
    with cache.rows(key, len(images)) as rows:
        todo = rows.missing(wanted)
        begin = time.perf_counter()
        if len(todo):
            with progress.task(name, len(wanted), len(wanted) - len(todo)) as task:
                for batch in embed(todo.tolist(), read, batch_size, workers):
                    vectors = {index: found for index, found in batch if isinstance(found, np.ndarray)}
                    faults = {index: found.what for index, found in batch if isinstance(found, DcclipError)}
                    rows.fill(np.asarray(list(vectors), np.int64), np.asarray(list(vectors.values())), faults)
                    task.advance(len(batch))
        there, taken = rows.take(wanted)
        chosen = set(wanted.tolist())
        bad = {index: fault for index, fault in rows.faults.items() if index in chosen}
        return Embedded(there, taken, bad, len(todo), time.perf_counter() - begin)


def embed_texts(model: Encoder, texts: Sequence[str], cache: FeatureCache, progress: Progress) -> np.ndarray:
    """(N, D), length 1."""

    def embed() -> np.ndarray:
        with progress.task(f"{model.name} on texts", len(texts)) as task:
            return text_embeddings(model, texts, advance=task.advance)

    return cache.texts(model.fingerprint, texts, embed)


def embed_classes(
    model: Encoder, names: Sequence[str], templates: Sequence[str], cache: FeatureCache, progress: Progress
) -> np.ndarray:
    """(C, D), length 1: for each class the mean over its templates, as CLIP's zero-shot classifier has it."""
    texts = [text for name in names for text in fill(templates, name)]
    return class_means(embed_texts(model, texts, cache, progress), [len(templates)] * len(names))
