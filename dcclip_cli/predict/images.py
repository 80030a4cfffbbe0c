"""Image files named by a user, and their embeddings, read ahead of the model."""

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

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find_images(given: Iterable[str], listed: Iterable[str] = ()) -> Iterator[Path]:
    """The files meant: named, in folders and below, or matching a glob; `-` stands for the lines `listed`.

    A named file need not exist or be a picture. Raises DcclipError for a folder without pictures, a glob without files.
    """
    for name in given:
        if name == "-":
            yield from find_images(line.rstrip("\r\n") for line in listed if line.strip() not in ("", "-"))
        elif _is_folder(name):
            yield from _not_empty(
                sorted(path for path in Path(name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()),
                f"{name} holds no pictures",
            )
        elif glob.has_magic(name) and not Path(name).exists():
            matching = (Path(path) for path in sorted(glob.glob(name, recursive=True)))
            yield from _not_empty([path for path in matching if path.is_file()], f"no file matches {name}")
        else:
            yield Path(name)


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name too long for any file: reading it will say so
        return False


def _not_empty(found: list[Path], otherwise: str) -> list[Path]:
    if not found:
        raise DcclipError(otherwise, f"pictures are files ending in {', '.join(SUFFIXES)}")
    return found


Item = TypeVar("Item")
BATCH_SIZE = 16
_AHEAD = 3  # batches of pictures that are read, or being read, at most


def embed(
    model: Encoder, items: Iterable[Item], read: Callable[[Item], Image.Image], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Item, np.ndarray | DcclipError]]:
    """Each item with its picture's embedding (D,) of length 1, or why `read` failed, in order, as soon as known."""
    for batch in embed_batches(model, items, read, batch_size):
        yield from batch


def embed_batches(
    model: Encoder,
    items: Iterable[Item],
    read: Callable[[Item], Image.Image],
    batch_size: int,
    workers: int | None = None,
) -> Iterator[list[tuple[Item, np.ndarray | DcclipError]]]:
    """What `embed` gives, a batch at a time.

    Pictures are read and preprocessed by `workers` threads, by default as many as there are processors.
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
