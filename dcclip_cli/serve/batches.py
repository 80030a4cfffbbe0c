"""An encoder for many clients at a time: inputs wait in one queue per kind, and are computed in
batches.
"""

import asyncio
import base64
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.machine import cores
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.inference.images import BATCH_SIZE, read
from dcclip_cli.inference.limits import check_texts
from dcclip_cli.model.preprocess import MAX_PIXELS, TooManyPixelsError

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = tuple[Item, asyncio.Future[Any]]
ImageTask = tuple[
    Path | bytes, Callable[[Image.Image], Any]
]  # an image file, and what to make of the decoded image
IMAGE_URL = "data:image/"  # what the data URL of an image begins with
MAX_IMAGES = 64  # of a request
_SMALL_PIXELS = (
    16_000_000  # larger images are decoded one at a time: memory, and other clients' images
)
_TEXT_COST = 128  # characters that count as one text
_TEXT_BATCH = 64
# of all requests
_WAITING_TEXTS = 32_768
_WAITING_IMAGES = 256


class RefusedError(DcclipError):
    """An error that is answered with an HTTP status of its own."""

    def __init__(self, what: str, hint: str, /, *values: object, status: int) -> None:
        super().__init__(what, hint, *values)
        self.status = status


def busy() -> RefusedError:
    """The error of a server that has as much to do as it takes."""
    return RefusedError("the server is busy", "try again in a second", status=429)


class Queue(Generic[Item]):
    """Items of requests. `take` gives an item of each request in turn, so that small requests do
    not wait for large.
    """

    def __init__(self, capacity: int, cost: Callable[[Item], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._cost = cost
        self._requests: deque[deque[Job[Item]]] = deque()
        self._arrived = asyncio.Event()
        self.waiting = (
            0  # cost of the items of unanswered requests, also of those that are computed
        )

    async def results(self, items: Sequence[Item]) -> list[Any]:
        """The result of each item; a cancelled request takes its items along. Raises RefusedError
        if full.
        """
        cost = sum(map(self._cost, items))
        if self.waiting + cost > self._capacity:
            raise busy()
        loop = asyncio.get_running_loop()
        jobs = deque((item, loop.create_future()) for item in items)
        futures = [future for _, future in jobs]
        self._requests.append(jobs)
        self.waiting += cost
        self._arrived.set()
        try:
            return await asyncio.gather(*futures)
        finally:
            jobs.clear()
            self.waiting -= cost

    async def take(self, cost: int) -> list[Job[Item]]:
        """The next items, at least one, of about this cost in total."""
        batch: list[Job[Item]] = []
        while not batch:
            await self._arrived.wait()
            while self._requests and cost > 0:
                if jobs := self._requests.popleft():
                    batch.append(jobs.popleft())
                    self._requests.append(jobs)
                    cost -= self._cost(batch[-1][0])
            if not self._requests:
                self._arrived.clear()
        return batch


class BatchedEncoder:
    """An encoder whose texts and images, from all requests, are computed in batches; used from one
    event loop.

    A batch is what has come while the one before was computed: nothing waits for others to come.
    `tell(kind, size)` is called with each batch.
    """

    def __init__(self, encoder: Encoder, tell: Callable[[str, int], object]) -> None:
        self.encoder = encoder
        self._tell = tell
        self._pool = ThreadPoolExecutor(cores(), "decode")
        self._texts: Queue[str] = Queue(_WAITING_TEXTS, lambda text: 1 + len(text) // _TEXT_COST)
        self._images: Queue[ImageTask] = Queue(_WAITING_IMAGES)
        self._large_images: Queue[ImageTask] = Queue(_WAITING_IMAGES)
        self._pixels: asyncio.Queue[Job[np.ndarray]] = asyncio.Queue(2 * BATCH_SIZE)

    def waiting(self, kind: str) -> int:
        """Inputs that wait or are computed, texts in units of 128 characters."""
        return (
            self._texts.waiting
            if kind == "text"
            else self._images.waiting + self._large_images.waiting
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute batches while the block runs: texts and images in a thread each, so that neither
        waits for both.
        """
        with (
            ThreadPoolExecutor(1, "texts") as texts,
            ThreadPoolExecutor(1, "images") as images,
            ThreadPoolExecutor(1, "decode-large") as large,
            self._pool,
        ):
            work = [self._encode_texts(texts), self._encode_images(images)]
            work += [self._decode(self._images, self._pool, _SMALL_PIXELS) for _ in range(cores())]
            work.append(self._decode(self._large_images, large, MAX_PIXELS))
            tasks = [asyncio.create_task(coroutine) for coroutine in work]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def in_pool(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings (N, D) of texts that pass `check_texts`."""
        check_texts(texts)
        return np.stack(await self._texts.results(texts))

    async def embed_images(self, files: Sequence[bytes]) -> np.ndarray:
        """Embeddings (N, D) of image files. Raises DcclipError for none, too many, or one that
        cannot be read.
        """
        return (await self.sized_images(files))[0]

    async def sized_images(
        self, files: Sequence[bytes]
    ) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """As `embed_images`, with the width and height of each image."""
        if not 1 <= len(files) <= MAX_IMAGES:
            raise DcclipError(
                "a request cannot contain {:,} images", "send 1 to {:,}", len(files), MAX_IMAGES
            )
        sizes = [(0, 0)] * len(files)

        def prepare(place: int, image: Image.Image) -> np.ndarray:
            sizes[place] = image.size
            return self.encoder.preprocess(image)

        tasks = [(file, partial(prepare, place)) for place, file in enumerate(files)]
        return np.stack(await self.make_of_images(tasks)), sizes

    async def make_of_images(self, tasks: Sequence[ImageTask]) -> list[Any]:
        """What each task makes of its image, and the embedding (D,) of pixels. Raises DcclipError
        for a bad image.
        """
        results = await self._images.results(tasks)
        if large := [place for place, result in enumerate(results) if result is None]:
            rest = await self._large_images.results([tasks[place] for place in large])
            for place, result in zip(large, rest, strict=True):
                results[place] = result
        return results

    async def _decode(
        self, queue: Queue[ImageTask], pool: ThreadPoolExecutor, max_pixels: int
    ) -> None:
        def run(task: ImageTask) -> Any:
            source, make = task
            return make(read(source, max_pixels))

        while True:
            [(task, future)] = await queue.take(1)
            decoding = asyncio.get_running_loop().run_in_executor(pool, run, task)
            await asyncio.wait([decoding])
            error = decoding.exception()
            if future.done():  # the client is gone
                continue
            if isinstance(error, TooManyPixelsError) and max_pixels < MAX_PIXELS:
                future.set_result(None)
            elif error is not None:
                future.set_exception(error)
            elif isinstance(result := decoding.result(), np.ndarray):
                await self._pixels.put((result, future))
            else:
                future.set_result(result)

    async def _encode_images(self, thread: ThreadPoolExecutor) -> None:
        while True:
            jobs = [await self._pixels.get()]
            while len(jobs) < BATCH_SIZE and not self._pixels.empty():
                jobs.append(self._pixels.get_nowait())
            await self._compute(
                "image", thread, lambda pixels: self.encoder.encode_pixels(np.stack(pixels)), jobs
            )

    async def _encode_texts(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await self._compute(
                "text", thread, self.encoder.encode_texts, await self._texts.take(_TEXT_BATCH)
            )

    async def _compute(
        self,
        kind: str,
        thread: ThreadPoolExecutor,
        encode: Callable[[list[Any]], np.ndarray],
        jobs: list[Job[Any]],
    ) -> None:
        jobs = [
            (item, future) for item, future in jobs if not future.done()
        ]  # those of clients that are there
        if not jobs:
            return
        self._tell(kind, len(jobs))
        computed = asyncio.get_running_loop().run_in_executor(
            thread, encode, [item for item, _ in jobs]
        )
        await asyncio.wait([computed])
        error = computed.exception()
        for place, (_, future) in enumerate(jobs):
            if not future.done():
                if error is None:
                    future.set_result(computed.result()[place])
                else:
                    future.set_exception(error)


def bad_url(url: str) -> DcclipError:
    """The error of an image that is not sent as a data URL: the server fetches nothing."""
    problem = Message("an image is not a data URL: {!r}", url[:40])
    return DcclipError(problem, "send data:image/jpeg;base64, followed by the file in base64")


def decode_url(url: str) -> bytes:
    """The file in a data URL of an image. Raises DcclipError for any other URL."""
    head, _, content = url.partition(",")
    if not (head.startswith(IMAGE_URL) and head.endswith(";base64")):
        raise bad_url(url)
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise DcclipError(
            "an image is not valid base64", "encode the file in base64, without line breaks"
        ) from None
