"""Many pictures through the image tower, the next ones read while the model runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import cores
from dcclip_cli.predict.runtime import DualEncoder

Item = TypeVar("Item")
BATCH_SIZE = 16
_AHEAD = 3  # batches of pictures that are read, or being read, at most


def embed(
    model: DualEncoder, items: Iterable[Item], read: Callable[[Item], Image.Image], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Item, np.ndarray | DcclipError]]:
    """Each item with its picture's embedding (D,) of length 1, or why `read` failed, in order, as soon as known."""
    for batch in embed_batches(model, items, read, batch_size):
        yield from batch


def embed_batches(
    model: DualEncoder,
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
    model: DualEncoder, batch: list[tuple[Item, np.ndarray | DcclipError]]
) -> list[tuple[Item, np.ndarray | DcclipError]]:
    pixels = [result for _, result in batch if isinstance(result, np.ndarray)]
    vectors = iter(model.encode_pixels(np.stack(pixels)) if pixels else ())
    return [(item, next(vectors) if isinstance(result, np.ndarray) else result) for item, result in batch]
