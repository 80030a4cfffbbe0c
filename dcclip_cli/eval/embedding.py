"""Embed a test set's images and texts: cached, unreadable images recorded, in one process or in several."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dcclip_cli.data.reading import Fault
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.dataset import Images, ImageTransform
from dcclip_cli.eval.feature_cache import FeatureCache
from dcclip_cli.machine import begin_worker, cores
from dcclip_cli.model.precision import Precision
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.predict.encoder import Encoder, load_encoder
from dcclip_cli.predict.images import embed_batches
from dcclip_cli.predict.zero_shot import class_means, fill, text_embeddings
from dcclip_cli.progress import Progress

Batch = list[tuple[int, np.ndarray | DcclipError]]
_BATCHES_PER_JOB = 4  # at most: within a job the next batch is read while the model runs
_JOBS_PER_PROCESS = 8  # at least, if there are enough batches, so that all processes end at about the same time


@dataclass(frozen=True)
class ImageReader:
    """Reads an image by its number, with the data set's transform, for a model with that preprocessing."""

    images: Images
    transform: ImageTransform
    preprocessing: dict[str, Any]

    def __call__(self, index: int) -> Image.Image:
        try:
            return self.transform(self.images.load(index), self.preprocessing)
        except Fault as fault:
            raise DcclipError(fault.drop.detail, "repair the file, or remove it from the data") from None


class EmbedBatches(Protocol):
    """Embeds images by number, in batches and in order; an unreadable image's item is its error."""

    def __call__(self, indices: Sequence[int], read: ImageReader, batch_size: int, workers: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class ModelRun:
    """A loaded model with its embedding cache; `embed` runs its image tower, in this process or in several."""

    model: Encoder
    cache: FeatureCache
    progress: Progress
    embed: EmbedBatches


@dataclass(frozen=True)
class Embedded:
    """Embeddings (N, D) of length 1 of the readable images, by their `indices`, and the errors of the others by index.

    `computed` of them were not cached, which took `seconds`.
    """

    indices: np.ndarray
    vectors: np.ndarray
    faults: dict[int, str]
    computed: int
    seconds: float


def sample_indices(count: int, limit: int | None) -> np.ndarray:
    """A fixed random sample of at most `limit` of `count` images, in order."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def embed_images(
    run: ModelRun, read: ImageReader, wanted: np.ndarray, name: str, batch_size: int = 64, workers: int = 2
) -> Embedded:
    """The embeddings of the images `wanted`; `workers` threads read and resize the next ones while the model runs."""
    begin, computed, faults = time.perf_counter(), 0, dict[int, str]()

    def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal computed
        computed = len(places)
        with run.progress.task(f"{run.model.name} on {name}", len(wanted), len(wanted) - computed) as task:
            for batch in run.embed(wanted[places].tolist(), read, batch_size, workers):
                vectors = {index: found for index, found in batch if isinstance(found, np.ndarray)}
                faults.update({index: found.what for index, found in batch if isinstance(found, DcclipError)})
                yield np.searchsorted(wanted, list(vectors)), np.asarray(list(vectors.values()))
                task.advance(len(batch))

    about = {
        "model": run.model.fingerprint,
        "preprocessing": read.transform.record(read.preprocessing),
        "images": read.images.fingerprint,
        "count": len(read.images),
    }
    there, vectors = run.cache.complete(about, (str(index).encode() for index in wanted), compute)
    if not len(vectors):
        first = next(iter(faults.values()), "")
        raise DcclipError(f"none of {len(wanted):,} images can be read: {first}", "download them again")
    return Embedded(wanted[there], vectors, faults, computed, time.perf_counter() - begin)


def embed_texts(run: ModelRun, texts: Sequence[str]) -> np.ndarray:
    """(N, D), length 1."""

    def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with run.progress.task(f"{run.model.name} on texts", len(places)) as task:
            yield places, text_embeddings(run.model, [texts[place] for place in places], advance=task.advance)

    about = {"model": run.model.fingerprint, "texts": True}
    return run.cache.complete(about, (text.encode() for text in texts), compute)[1]


def embed_classes(run: ModelRun, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """(C, D), length 1: the mean over each class's templates, as in CLIP's zero-shot classifier."""
    texts = [text for name in names for text in fill(templates, name)]
    return class_means(embed_texts(run, texts), [len(templates)] * len(names))


@contextmanager
def embed_in_processes(
    reference: ModelReference, device: str, precision: Precision, count: int
) -> Iterator[EmbedBatches]:
    """Like `embed_batches`, in `count` processes with a copy of the model each, one per GPU where there are several.

    The batches are the same, in the same order. Raises DcclipError if a process dies.
    """
    context = multiprocessing.get_context("spawn")  # neither torch's threads nor CUDA survive a fork
    threads = max(1, cores() // count)
    devices = [device_of(reference, device, number) for number in range(count)]
    pools = [ProcessPoolExecutor(1, context, _load, (reference, one, precision, threads)) for one in devices]

    def embed(indices: Sequence[int], read: ImageReader, batch_size: int, workers: int) -> Iterator[Batch]:
        total = -(-len(indices) // batch_size)
        size = batch_size * min(_BATCHES_PER_JOB, max(1, total // (_JOBS_PER_PROCESS * count)))
        jobs = [list(indices[start : start + size]) for start in range(0, len(indices), size)]
        try:
            for pool in pools:
                pool.submit(_set_reader, read)
            submitted = zip(itertools.cycle(pools), jobs, strict=False)
            waiting = deque(pool.submit(_embed, job, batch_size, workers) for pool, job in submitted)
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise DcclipError(
                "a process with a copy of the model was killed: probably out of memory",
                "run the same command again with fewer --processes",
            ) from None

    finished = False
    try:
        yield embed
        finished = True
    finally:
        for pool in pools:
            pool.shutdown(wait=finished, cancel_futures=True)


def device_of(reference: ModelReference, device: str, number: int) -> str:
    """The device of process `number`: the GPUs in turn; onnxruntime, which runs bundles, has one device."""
    if device == "cpu" or reference.kind == "bundle":
        return device
    import torch

    if device in ("auto", "cuda") and (count := torch.cuda.device_count()):
        return f"cuda:{number % count}"
    return device


# ---- in a worker process

_worker: dict[str, Any] = {}  # its model and image reader


def _load(reference: ModelReference, device: str, precision: Precision, threads: int) -> None:
    begin_worker()
    _worker["model"] = load_encoder(reference, device, precision, threads)


def _set_reader(read: ImageReader) -> None:
    _worker["read"] = read


def _embed(indices: list[int], batch_size: int, workers: int) -> list[Batch]:
    return list(embed_batches(_worker["model"], indices, _worker["read"], batch_size, workers))
