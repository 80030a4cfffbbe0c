"""Every image of a test set through the image tower, once; every text through the text tower, once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli.data.files.fault import Fault
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.feature_cache import FeatureCache
from dcclip_cli.eval.loaders import Images
from dcclip_cli.predict.classifier import class_means, fill, text_embeddings
from dcclip_cli.predict.runtime import DualEncoder
from dcclip_cli.progress import Progress

_AHEAD = 3  # batches read while the model runs


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
    model: DualEncoder,
    images: Images,
    wanted: np.ndarray,
    view: View,
    cache: FeatureCache,
    progress: Progress,
    name: str,
    batch_size: int = 64,
    workers: int = 2,
) -> Embedded:
    """The embeddings of the images `wanted`; `workers` threads read and scale the next ones while the model runs."""
    preprocessing = view.of(dict(model.preprocessing))
    key = {"model": model.fingerprint, "preprocessing": preprocessing, "images": images.stamp, "count": len(images)}
    with cache.rows(key, len(images)) as rows:
        todo = rows.missing(wanted)
        begin = time.perf_counter()
        if len(todo):
            with progress.task(name, len(wanted), len(wanted) - len(todo)) as task:
                for batch, pixels, faults in _read_ahead(model, images, todo, view, batch_size, workers):
                    vectors = model.encode_pixels(pixels) if pixels is not None else np.empty((0, 0))
                    rows.fill(batch, vectors, faults)
                    task.advance(len(batch) + len(faults))
        there, vectors = rows.take(wanted)
        chosen = set(wanted.tolist())
        faults = {index: fault for index, fault in rows.faults.items() if index in chosen}
        return Embedded(there, vectors, faults, len(todo), time.perf_counter() - begin)


def embed_texts(model: DualEncoder, texts: Sequence[str], cache: FeatureCache, progress: Progress) -> np.ndarray:
    """(N, D), length 1."""

    def embed() -> np.ndarray:
        with progress.task(f"{model.name} on texts", len(texts)) as task:
            return text_embeddings(model, texts, advance=task.advance)

    return cache.texts(model.fingerprint, texts, embed)


def embed_classes(
    model: DualEncoder, names: Sequence[str], templates: Sequence[str], cache: FeatureCache, progress: Progress
) -> np.ndarray:
    """(C, D), length 1: for each class the mean over its templates, as CLIP's zero-shot classifier has it."""
    texts = [text for name in names for text in fill(templates, name)]
    return class_means(embed_texts(model, texts, cache, progress), [len(templates)] * len(names))


_Batch = tuple[np.ndarray, "np.ndarray | None", dict[int, str]]  # indices that could be read, their pixels, faults


def _read_ahead(
    model: DualEncoder, images: Images, indices: np.ndarray, view: View, batch_size: int, workers: int
) -> Iterator[_Batch]:
    preprocessing = dict(model.preprocessing)

    def read(index: int) -> np.ndarray | str:
        try:
            picture = images.picture(index)
            return model.preprocess(view(picture, preprocessing) if view != View() else picture)
        except DcclipError as error:
            return error.what
        except Fault as fault:
            return fault.drop.detail

    waiting: deque[tuple[np.ndarray, list[Future[np.ndarray | str]]]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                waiting.append((batch, [pool.submit(read, int(index)) for index in batch]))
                if len(waiting) >= _AHEAD:
                    yield _stacked(*waiting.popleft())
            while waiting:
                yield _stacked(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _stacked(batch: np.ndarray, reading: Sequence[Future[np.ndarray | str]]) -> _Batch:
    found = [one.result() for one in reading]
    good = [number for number, one in enumerate(found) if not isinstance(one, str)]
    faults = {int(batch[number]): one for number, one in enumerate(found) if isinstance(one, str)}
    return batch[good], np.stack([found[number] for number in good]) if good else None, faults
