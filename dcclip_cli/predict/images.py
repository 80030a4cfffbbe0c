"""Image files named by a user, their embeddings, and the search index of a folder."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import cores
from dcclip_cli.model.preprocess import decode
from dcclip_cli.predict.encoder import Encoder
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.store import FeatureStore, digests

Item = TypeVar("Item")
Result = np.ndarray | DcclipError
BATCH_SIZE = 16
_AHEAD = 3  # batches of images that are read ahead at most
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FOLDER = ".dcclip"  # in the folder that is searched, with a feature store for each model
_MOST_BLOCKS = 32


def find_images(given: Iterable[str], listed: Iterable[str] = ()) -> Iterator[Path]:
    """The files given by name, folder (searched recursively) or glob; `-` stands for the lines in `listed`.

    A named file need not exist or be an image, and a folder in a folder that may not be read is among the files:
    reading them reports that. Raises DcclipError for a folder without images, a glob without files, an empty name or
    list.
    """
    for name in given:
        if not name:
            raise DcclipError("the name of an image is empty", "is a shell variable not set? Name files or folders")
        if name == "-":
            lines = [line.rstrip("\r\n") for line in listed if line.strip() not in ("", "-")]
            if not lines:
                example = "find FOLDER -name '*.jpg' | dcclip predict - --labels 猫,dog"
                raise DcclipError("stdin has no line with the name of an image", f"for example: {example}")
            yield from find_images(lines)
        elif _is_folder(name):
            yield from _not_empty(_below(name), f"{name} contains no images")
        elif glob.has_magic(name) and not Path(name).exists():
            matching = (Path(path) for path in sorted(glob.glob(name, recursive=True)))
            yield from _not_empty([path for path in matching if path.is_file()], f"no file matches {name}")
        else:
            yield Path(name)


def _below(folder: str) -> list[Path]:
    """The images at any depth of a folder, and the folders there that may not be read."""
    blocked: list[Path] = []
    found = [
        path
        for parent, _, names in os.walk(folder, onerror=lambda error: blocked.append(Path(error.filename)))
        for path in map(Path(parent).joinpath, names)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    return sorted(found + blocked)


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name too long for a file: reading it reports that
        return False


def _not_empty(found: list[Path], otherwise: str) -> list[Path]:
    if not found:
        raise DcclipError(otherwise, f"images are files ending in {', '.join(SUFFIXES)}")
    return found


def embed(
    model: Encoder, items: Iterable[Item], read: Callable[[Item], Image.Image], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Item, Result]]:
    """Each item with its image's embedding (D,) of length 1, or the error of `read`, in order, batch by batch."""
    for batch in embed_batches(model, items, read, batch_size):
        yield from batch


def embed_batches(
    model: Encoder,
    items: Iterable[Item],
    read: Callable[[Item], Image.Image],
    batch_size: int,
    workers: int | None = None,
) -> Iterator[list[tuple[Item, Result]]]:
    """The results of `embed`, as one list per batch.

    Images are read and preprocessed by `workers` threads, by default one per CPU core.
    """

    def prepare(item: Item) -> Result:
        try:
            return model.preprocess(read(item))
        except DcclipError as error:
            return error

    remaining = iter(items)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers or cores()) as pool:
        try:
            while True:
                for item in islice(remaining, _AHEAD * batch_size - len(waiting)):
                    waiting.append((item, pool.submit(prepare, item)))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                yield _encode(model, [(item, future.result()) for item, future in batch])
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(model: Encoder, batch: list[tuple[Item, Result]]) -> list[tuple[Item, Result]]:
    pixels = [result for _, result in batch if isinstance(result, np.ndarray)]
    vectors = iter(model.encode_pixels(np.stack(pixels)) if pixels else ())
    return [(item, next(vectors) if isinstance(result, np.ndarray) else result) for item, result in batch]


@dataclass(frozen=True)
class Hit:
    """An image and the cosine between its embedding and that of the text."""

    image: Path
    score: float


@dataclass(frozen=True)
class Index:
    """The images of a folder: `paths` relative to it, their `embeddings` (N, D) of length 1, and what failed.

    `embedded` is how many of them went through the model this time.
    """

    folder: Path
    paths: tuple[str, ...]
    embeddings: np.ndarray
    errors: dict[str, str]
    embedded: int

    def search(self, query: np.ndarray, top_k: int) -> list[Hit]:
        """The `top_k` images nearest to `query` (D,), the nearest first.

        100,000 images take 12 ms at 256 numbers each and 22 ms at 768, on one thread of a server: a vector index would
        save less than it costs to load.
        """
        scores = self.embeddings @ query
        top_k = min(top_k, len(scores))
        nearest = np.argpartition(-scores, top_k - 1)[:top_k] if top_k < len(scores) else np.arange(len(scores))
        nearest = nearest[np.argsort(-scores[nearest], kind="stable")]
        return [Hit(self.folder / self.paths[index], float(scores[index])) for index in nearest]


def open_index(model: Encoder, folder: Path, fresh: bool = False, progress: Progress | None = None) -> Index:
    """The up-to-date index of the images in a folder and below it; new and changed ones are embedded now.

    It is stored in FOLDER/.dcclip where that can be written. Raises DcclipError where there is no such folder, or no
    image in it that can be read.
    """
    progress = progress or Silent()
    if not folder.is_dir():
        raise DcclipError(f"{folder} is not a folder", "name a folder of images")
    names = [str(path.relative_to(folder)) for path in find_images([str(folder)])]
    store = FeatureStore(folder / FOLDER / model.fingerprint[:16], progress.say, optional=True)
    if fresh:
        store.clear()
    errors: dict[str, str] = {}
    embedded = 0

    def compute(places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal embedded
        with progress.task(f"index {folder}", len(places)) as task:
            for place, result in embed(model, places.tolist(), lambda place: decode(folder / names[place])):
                if isinstance(result, DcclipError):
                    errors[names[place]] = result.what
                else:
                    embedded += 1
                    yield np.asarray([place]), result[None].astype(np.float16)
                task.advance()

    keys = digests("", (_stamp(folder, name) for name in names))
    there, vectors = store.complete("embedding", keys, compute)
    if not there.any():
        raise DcclipError(f"{folder} has no image that can be read", "name a folder of JPEG, PNG or WebP images")
    if store.blocks > _MOST_BLOCKS or store.rows > 2 * len(vectors):
        store.compact("embedding", keys[there])
    embeddings = vectors.astype(np.float32)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    paths = tuple(name for name, found in zip(names, there.tolist(), strict=True) if found)
    return Index(folder, paths, embeddings, errors, embedded)


def _stamp(folder: Path, name: str) -> bytes:
    """What changes when a file does: its name, size and time of change (ns)."""
    found = (folder / name).stat()
    return f"{name}\0{found.st_size}\0{found.st_mtime_ns}".encode(errors="surrogateescape")
