"""Image files named by a user, and their embeddings, with images read ahead of the model."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import cores
from dcclip_cli.predict.encoder import Encoder

Item = TypeVar("Item")
BATCH_SIZE = 16
_AHEAD = 3  # batches of images that are read ahead at most
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find_images(given: Iterable[str], listed: Iterable[str] = ()) -> Iterator[Path]:
    """The files given by name, folder (searched recursively) or glob; `-` stands for the lines in `listed`.

    A named file need not exist or be an image. Raises DcclipError for a folder without images, a glob without files.
    """
    for name in given:
        if name == "-":
            yield from find_images(line.rstrip("\r\n") for line in listed if line.strip() not in ("", "-"))
        elif _is_folder(name):
            yield from _not_empty(
                sorted(path for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()),
                f"{name} contains no images",
            )
        elif glob.has_magic(name) and not Path(name).exists():
            matching = (Path(path) for path in sorted(glob.glob(name, recursive=True)))
            yield from _not_empty([path for path in matching if path.is_file()], f"no file matches {name}")
        else:
            yield Path(name)


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
) -> Iterator[tuple[Item, np.ndarray | DcclipError]]:
    """Each item with its image's embedding (D,) of length 1, or the error of `read`, in order, batch by batch."""
    for batch in embed_batches(model, items, read, batch_size):
        yield from batch


def embed_batches(
    model: Encoder,
    items: Iterable[Item],
    read: Callable[[Item], Image.Image],
    batch_size: int,
    workers: int | None = None,
) -> Iterator[list[tuple[Item, np.ndarray | DcclipError]]]:
    """The results of `embed`, as one list per batch.

    Images are read and preprocessed by `workers` threads, by default one per CPU core.
    """

    def prepare(item: Item) -> np.ndarray | DcclipError:
        try:
            return model.preprocess(read(item))
        except DcclipError as error:
            return error

    remaining = iter(items)
    waiting: deque[tuple[Item, Future[np.ndarray | DcclipError]]] = deque()
    with ThreadPoolExecutor(workers or cores()) as pool:
        try:
            while True:
                while len(waiting) < _AHEAD * batch_size:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        break
                    waiting.append((item, pool.submit(prepare, item)))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                yield _encode(model, [(item, future.result()) for item, future in batch])
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(
    model: Encoder, batch: list[tuple[Item, np.ndarray | DcclipError]]
) -> list[tuple[Item, np.ndarray | DcclipError]]:
    pixels = [result for _, result in batch if isinstance(result, np.ndarray)]
    vectors = iter(model.encode_pixels(np.stack(pixels)) if pixels else ())
    return [(item, next(vectors) if isinstance(result, np.ndarray) else result) for item, result in batch]
