"""Zero-shot classification: every image embedded once, then compared with the class names of each language."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import metrics
from dcclip_cli.eval.datasets import Classes, LabelledImages
from dcclip_cli.predict.classifier import class_embeddings, fill
from dcclip_cli.predict.runtime import DualEncoder
from dcclip_cli.progress import Task


def embed_images(
    model: DualEncoder, images: LabelledImages, indices: Sequence[int], batch_size: int, task: Task
) -> np.ndarray:
    """(N, D) embeddings of length 1 of the images `indices`; the next batches are read while the model runs."""
    embeddings = []
    for pixels in _read_ahead(model, images, indices, batch_size):
        embeddings.append(model.encode_pixels(pixels))
        task.advance(len(pixels))
    return np.concatenate(embeddings)


def classify(model: DualEncoder, embeddings: np.ndarray, labels: np.ndarray, classes: Classes) -> dict[str, float]:
    """Top-1, top-5 and mean per class of images (N, D) whose classes are `labels` (N,)."""
    texts = class_embeddings(model, [fill(classes.templates, name) for name in classes.names])
    ranks = metrics.ranks(embeddings @ texts.T, labels)
    return {
        "top1": metrics.top_k(ranks, 1),
        "top5": metrics.top_k(ranks, 5),
        "mean_per_class": metrics.mean_per_class(ranks, labels),
    }


def _read_ahead(
    model: DualEncoder, images: LabelledImages, indices: Sequence[int], batch_size: int
) -> Iterator[np.ndarray]:
    def read(batch: Sequence[int]) -> np.ndarray:
        return np.stack([_read(model, images, index) for index in batch])

    waiting: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(2) as pool:
        try:
            for start in range(0, len(indices), batch_size):
                waiting.append(pool.submit(read, indices[start : start + batch_size]))
                if len(waiting) > 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(model: DualEncoder, images: LabelledImages, index: int) -> np.ndarray:
    try:
        return model.preprocess(images.picture(index))
    except DcclipError as error:
        raise DcclipError(f"data set {images.name}, image {index}: {error.what}", error.hint) from None
