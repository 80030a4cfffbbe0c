"""An encoder for many clients at a time: images are decoded in a pool, and what waits is computed in one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import BATCH_SIZE, read
from dcclip_cli.machine import cores
from dcclip_cli.text import check_unicode

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_TEXTS = 2048  # of a request, as with OpenAI
MAX_IMAGES = 64  # of a request
_TEXT_BATCH = 64
_WAITING_TEXTS, _WAITING_IMAGES = 4 * MAX_TEXTS, 256  # of all requests


class RefusedError(DcclipError):
    """An error that is answered with an HTTP status of its own."""

    def __init__(self, what: str, hint: str, /, *values: object, status: int) -> None:
        super().__init__(what, hint, *values)
        self.status = status


def busy() -> RefusedError:
    """The error of a server that has as much to do as it takes."""
    return RefusedError("the server is busy", "try again in a second", status=429)


class Batches(Generic[Item]):
    """Items that one thread computes in batches, each of what has come while the one before was computed.

    An item never waits for others to come. `seen` is called with the size of each batch.
    """

    def __init__(
        self, compute: Callable[[list[Item]], np.ndarray], size: int, most: int, seen: Callable[[int], object]
    ) -> None:
        self._compute, self._size, self._most, self._seen = compute, size, most, seen
        self._queue: deque[tuple[Item, asyncio.Future[np.ndarray]]] = deque()
        self._some = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return len(self._queue)

    async def rows(self, items: Sequence[Item]) -> np.ndarray:
        """The result of each item, stacked. Raises RefusedError if the queue has no place for them."""
        if len(self._queue) + len(items) > self._most:
            raise busy()
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[np.ndarray]] = [loop.create_future() for _ in items]
        self._queue.extend(zip(items, futures, strict=True))
        self._some.set()
        return np.stack(await asyncio.gather(*futures))

    async def run(self, thread: ThreadPoolExecutor) -> None:
        """Compute what is in the queue, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            batch = [self._queue.popleft() for _ in range(min(self._size, len(self._queue)))]
            if not self._queue:
                self._some.clear()
            self._seen(len(batch))
            computed = loop.run_in_executor(thread, self._compute, [item for item, _ in batch])
            await asyncio.wait([computed])
            error = computed.exception()
            for place, (_, future) in enumerate(batch):
                if future.done():  # its request was cancelled
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(computed.result()[place])


class BatchedEncoder:
    """An encoder whose texts and images, from all requests, are computed in batches; used from one event loop.

    `seen(kind, size)` is called with each batch.
    """

    def __init__(self, encoder: Encoder, seen: Callable[[str, int], object]) -> None:
        self.encoder = encoder
        self._pool = ThreadPoolExecutor(cores(), "decode")
        self.texts: Batches[str] = Batches(
            encoder.encode_texts, _TEXT_BATCH, _WAITING_TEXTS, lambda size: seen("text", size)
        )
        self.images: Batches[np.ndarray] = Batches(
            lambda pixels: encoder.encode_pixels(np.stack(pixels)),
            BATCH_SIZE, _WAITING_IMAGES, lambda size: seen("image", size),
        )  # fmt: skip

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute batches while the block runs: texts and images in a thread each, so that neither waits for both."""
        with ThreadPoolExecutor(1, "texts") as texts, ThreadPoolExecutor(1, "images") as images, self._pool:
            tasks = [asyncio.create_task(self.texts.run(texts)), asyncio.create_task(self.images.run(images))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def in_pool(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The result of a call in the pool that decodes images."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D). Raises DcclipError for no text, too many, an empty one, or one that is not Unicode."""
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise DcclipError("{:,} texts in a request", "send 1 to {:,}", len(texts), MAX_TEXTS)
        if not all(text.strip() for text in texts):
            raise DcclipError("a text is empty", "leave it out")
        check_unicode(texts)
        return await self.texts.rows(texts)

    async def embed_images(self, files: Sequence[bytes]) -> np.ndarray:
        """Embeddings (N, D) of image files. Raises DcclipError for none, too many, or one that cannot be read."""
        return (await self.sized_images(files))[0]

    async def sized_images(self, files: Sequence[bytes]) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """As `embed_images`, with the width and height of each image."""
        if not 1 <= len(files) <= MAX_IMAGES:
            raise DcclipError("{:,} images in a request", "send 1 to {:,}", len(files), MAX_IMAGES)
        if self.images.waiting + len(files) > _WAITING_IMAGES:
            raise busy()  # before they are decoded
        prepared = await asyncio.gather(*(self.in_pool(self._prepare, file) for file in files))
        return await self.images.rows([pixels for pixels, _ in prepared]), [size for _, size in prepared]

    def _prepare(self, file: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        image: Image.Image = read(file)
        return self.encoder.preprocess(image), image.size


def data_url_bytes(url: str) -> bytes:
    """The file in a data URL of an image. Raises DcclipError for any other URL: the server fetches nothing."""
    import base64
    import binascii

    head, _, content = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        what = Message("an image is not a data URL: {!r}", url[:40])
        raise DcclipError(what, "send data:image/jpeg;base64, followed by the file in base64")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise DcclipError("an image is not base64", "encode the file in base64, without line breaks") from None
