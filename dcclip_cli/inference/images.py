"""Image files named by a user, and their embeddings."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.inference.encoder import Encoder
from dcclip_cli.machine import cores
from dcclip_cli.model.preprocess import FORMATS, MAX_PIXELS, decode

Item = TypeVar("Item")
Result = np.ndarray | DcclipError
BATCH_SIZE = 16
_AHEAD = 3  # batches of images that are read ahead at most
_NEWER = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}  # suffix -> Pillow's name of the format
_MIME_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"RIFF": "image/webp"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", *_NEWER)


def find_images(names: Iterable[str], listed: Iterable[str] = ()) -> Iterator[Path]:
    """The files named by path, folder (searched recursively) or glob; `-` stands for the lines in `listed`.

    A named file need not exist or be an image, and a folder in a folder that may not be read is among the files:
    reading them reports that. Raises DcclipError for a folder without images, a glob without files, an empty name or
    list.
    """
    for name in names:
        if not name:
            raise DcclipError(
                "an image path is empty", "set the shell variable that it comes from, or give files or folders"
            )
        if name == "-":
            lines = [line.rstrip("\r\n") for line in listed if line.strip() not in ("", "-")]
            if not lines:
                example = "find FOLDER -name '*.jpg' | dcclip predict - --labels 猫,dog"
                raise DcclipError("stdin contains no image paths", "write paths to stdin, for example: {}", example)
            yield from find_images(lines)
        elif os.path.isdir(name):
            yield from _not_empty(_images_below(name), Message("{} contains no images", name))
        elif glob.has_magic(name) and not os.path.exists(name):
            matching = (Path(path) for path in sorted(glob.glob(name, recursive=True)))
            yield from _not_empty([path for path in matching if path.is_file()], Message("no file matches {}", name))
        else:
            yield Path(name)


def read(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode` for users' pictures: AVIF as well, and HEIC with the package pillow-heif. Raises DcclipError."""
    if isinstance(source, bytes):
        form = "" if source[4:8] != b"ftyp" else "AVIF" if source[8:11] == b"avi" else "HEIF"
    else:
        form = _NEWER.get(source.suffix.lower(), "")
    if form == "HEIF" and find_spec("pillow_heif") is None:
        name = str(source) if isinstance(source, Path) else Message("image of {} bytes", len(source))
        raise DcclipError("{} is HEIC, which needs the package pillow-heif", "pip install 'dcclip[heic]'", name)
    if form == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    if form == "AVIF":
        from PIL import AvifImagePlugin  # noqa: F401
    return decode(source, max_pixels, (*FORMATS, form) if form else FORMATS)


def mime_type(content: bytes) -> str | None:
    """The MIME type of an image file by its first bytes, None for what is no image that `read` reads."""
    if content[4:8] == b"ftyp":
        return "image/avif" if content[8:11] == b"avi" else "image/heic"
    return next((kind for start, kind in _MIME_TYPES.items() if content.startswith(start)), None)


def _images_below(folder: str) -> list[Path]:
    """The images at any depth of a folder, and the folders there that may not be read."""
    blocked: list[Path] = []
    images = [
        path
        for parent, _, names in os.walk(folder, onerror=lambda error: blocked.append(Path(error.filename)))
        for path in map(Path(parent).joinpath, names)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    return sorted(images + blocked)


def _not_empty(paths: list[Path], error: str) -> list[Path]:
    if not paths:
        raise DcclipError(error, Message("use files with one of these suffixes: {}", ", ".join(SUFFIXES)))
    return paths


def embed(
    model: Encoder, items: Iterable[Item], read: Callable[[Item], Image.Image], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[Item, Result]]:
    """Each item with its image's embedding (D,) of length 1, or the error of `read`, in order, batch by batch."""
    for batch in embed_batches(model, batched(items, batch_size), read):
        yield from batch


def embed_batches(
    model: Encoder, batches: Iterable[Sequence[Item]], read: Callable[[Item], Image.Image], workers: int | None = None
) -> Iterator[list[tuple[Item, Result]]]:
    """The results of `embed`, as one list per batch; `workers` threads read images, by default one per core."""

    def prepare(item: Item) -> Result:
        try:
            return model.preprocess(read(item))
        except DcclipError as error:
            return error

    remaining = iter(batches)
    waiting: deque[list[tuple[Item, Future[Result]]]] = deque()
    with ThreadPoolExecutor(workers or cores()) as pool:
        try:
            while True:
                for items in islice(remaining, _AHEAD - len(waiting)):
                    waiting.append([(item, pool.submit(prepare, item)) for item in items])
                if not waiting:
                    return
                batch = [(item, future.result()) for item, future in waiting.popleft()]
                pixels = [result for _, result in batch if isinstance(result, np.ndarray)]
                vectors = iter(model.encode_pixels(np.stack(pixels)) if pixels else ())
                yield [(item, next(vectors) if isinstance(result, np.ndarray) else result) for item, result in batch]
        finally:
            pool.shutdown(cancel_futures=True)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`, the last one with the rest."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def aligned(places: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Ascending places in batches, those between two multiples of `batch_size` together.

    The last bits of an embedding depend on what is computed with it: so they are the same whatever is missing, as long
    as whole batches are stored.
    """
    cuts = np.flatnonzero(np.diff(places // batch_size)) + 1
    return (batch.tolist() for batch in np.split(places, cuts) if len(batch))
