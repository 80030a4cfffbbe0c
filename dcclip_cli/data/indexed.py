"""Pairs in indexed shards: found through mapped files, read by place, compared with their digests.

The images of a Parquet file are unpacked to a file in the cache folder when the first of them is
read.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_file, cache_folder, json_object, lock
from dcclip_cli.data.index import Index, read_batch
from dcclip_cli.data.pair import (
    LANGUAGES,
    ConcatDataset,
    Language,
    Lazy,
    Pair,
    PairDataset,
    image_digest,
)
from dcclip_cli.data.remote import CACHE_BYTES, DataFile, check_room, local_file
from dcclip_cli.data.shards import group_images

if TYPE_CHECKING:
    import pyarrow as pa

_HINT = Message("write it as a JSON object, then index the file again")
_CHUNKS = 1_024  # record batches that are mapped at a time


def _images_file(index: Index, max_bytes: int) -> DataFile:
    """The file that has an index's images: a tar itself; those of a Parquet file are unpacked to
    the cache folder.

    Of the unpacked files, the oldest are removed to stay within `max_bytes`.
    """
    file = index.file
    metadata = index.metadata
    if not metadata.groups:
        return file
    folder = cache_folder() / "images"
    size = _unpacked_bytes(index)
    path = folder / f"{metadata.sha256[:32]}.images"  # by content, wherever that is
    if not _has_size(path, size):
        with lock(folder / f".{path.name[:2]}.lock"):  # one of 256: lock files do not add up
            if not _has_size(path, size):
                remove_oldest(folder, max_bytes - size)
                with (
                    atomic_file(path) as temporary,
                    temporary.open("wb", buffering=1 << 20) as target,
                ):
                    for group in range(len(metadata.groups)):
                        images = group_images(file, group, metadata.columns.get("image", "image"))
                        target.writelines(image or b"" for image in images)
    return local_file(path)


def remove_oldest(folder: Path, max_bytes: int) -> None:
    """Remove the oldest unpacked files until the others have at most `max_bytes`."""
    files: list[tuple[int, int, Path]] = []
    for path in folder.glob("*.images"):
        with suppress(FileNotFoundError):  # another process removed it
            status = path.stat()
            files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total > max_bytes:
            path.unlink(missing_ok=True)
            total -= size


def _unpacked_bytes(index: Index) -> int:
    return sum(size for _, size in index.metadata.groups)


def _has_size(path: Path, size: int) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_size == size
    return False


class IndexedDataset(ConcatDataset):
    """Pairs in tars and Parquet files, found through the index of each: its record batches, one
    after the other.

    Only the number of rows of each index is in memory: captions are looked up in the mapped files,
    and each image is compared with its digest when it is read.
    """

    def __init__(
        self,
        path: str | Path,
        indexes: Sequence[Index],
        uncaptioned: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """With `uncaptioned`, images without a record belong to it as well; `cache_bytes`: limit
        of unpacked images.
        """
        self.path = path
        self._indexes = list(indexes)
        self._uncaptioned = uncaptioned
        counts = [
            index.metadata.rows if uncaptioned else index.metadata.captioned for index in indexes
        ]
        self._places = [
            (shard, batch) for shard, rows in enumerate(counts) for batch in range(len(rows))
        ]
        self.firsts = [0, *accumulate(chain.from_iterable(counts))]
        self._cache_bytes = cache_bytes
        unpacked = {index.metadata.sha256: _unpacked_bytes(index) for index in indexes}
        check_room(path, sum(unpacked.values()), 0, cache_bytes, cache_folder() / "images")
        self._images: dict[int, DataFile] = {}  # by shard, those that were read
        count = len(self._places)
        chunk = lru_cache(_CHUNKS)(self._chunk)
        self._datasets = Lazy(count, chunk, lambda: map(self._chunk, range(count)))

    def __reduce__(self) -> tuple[type, tuple[str | Path, Sequence[Index], bool, int]]:
        return type(self), (self.path, self._indexes, self._uncaptioned, self._cache_bytes)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(
            "".join(index.metadata.sha256 for index in self._indexes).encode()
        ).hexdigest()

    def first_of(self, shard: int) -> int:
        """The first sample of a shard or of those after it."""
        return self.firsts[bisect_left(self._places, (shard, 0))]

    def _images_of(self, shard: int) -> DataFile:
        """The file with a shard's images; another run may have removed it to make room."""
        if shard not in self._images or not os.path.exists(self._images[shard].location):
            self._images[shard] = _images_file(self._indexes[shard], self._cache_bytes)
        return self._images[shard]

    def _chunk(self, number: int) -> _Chunk:
        shard, batch = self._places[number]
        index = self._indexes[shard]
        before = sum(index.metadata.rows[:batch])
        selected = (
            not self._uncaptioned and index.metadata.captioned[batch] < index.metadata.rows[batch]
        )
        return _Chunk(
            index, read_batch(index, batch), before, selected, partial(self._images_of, shard)
        )


class _Chunk(PairDataset):
    """The pairs in a record batch of an index; with `selected`, only those that have captions."""

    def __init__(
        self,
        index: Index,
        batch: pa.RecordBatch,
        before: int,
        selected: bool,
        images_file: Callable[[], DataFile],
    ) -> None:
        """`before`: rows of the batches before; `images_file` gives the file that has the images."""
        self.path = str(index.file)
        self._index = index
        self._batch = batch
        self._before = before
        self._images_file = images_file
        self._offset = batch["offset"].to_numpy()
        self._size = batch["size"].to_numpy()
        self._columns = {name: batch[name] for name in ("key", *LANGUAGES, "meta", "digest")}
        self._selected = (
            np.flatnonzero(batch["captioned"].to_numpy(zero_copy_only=False)) if selected else None
        )
        groups = np.asarray(index.metadata.groups, np.int64).reshape(-1, 2).cumsum(0)
        self._group_ends = groups[:, 0]
        self._group_starts = np.append(0, groups[:, 1])  # in the file of unpacked images

    def __len__(self) -> int:
        return self._batch.num_rows if self._selected is None else len(self._selected)

    def __getitem__(self, index: int) -> Pair:
        key = self._value("key", index)
        meta = json_object(self._value("meta", index), f"{self.path}: meta of pair {key}", _HINT)
        zh, en = (tuple(self._value(language, index)) for language in LANGUAGES)
        return Pair(key, self.image(index), zh, en, meta)

    def keys(self) -> Sequence[str]:
        return Lazy(len(self), partial(self._value, "key"), lambda: iter(self._all("key")))

    def captions(self, language: Language) -> Sequence[tuple[str, ...]]:
        def get(place: int) -> tuple[str, ...]:
            return tuple(self._value(language, place))

        return Lazy(len(self), get, lambda: map(tuple, self._all(language)))

    def image(self, index: int) -> bytes:
        """The bytes of a sample's image. Raises DcclipError where they are not those that were
        indexed.
        """
        row = self._rows(index)
        file = self._index.file
        offset = int(self._offset[row])
        size = int(self._size[row])
        if size < 0:
            message = Message("{}: pair {} has no image data", file, self._value("key", index))
            raise DcclipError(message, "remove the pair, or add its image")
        images = self._images_file()
        if len(self._group_ends):
            offset += int(
                self._group_starts[self._group_ends.searchsorted(self._before + row, "right")]
            )
        image = images.read(offset, size)
        if image_digest(image) != self.image_digest(index):
            if images != file:
                Path(images.location).unlink(
                    missing_ok=True
                )  # in case it is the cache that is damaged
            key = self._value("key", index)
            message = Message("{}: the image of pair {} changed after it was indexed", file, key)
            raise DcclipError(
                message, Message("index the data again: dcclip index --fresh {}", file)
            )
        return image

    def image_digest(self, index: int) -> bytes:
        return bytes(self._value("digest", index))

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        rows = self._rows(indices)
        return np.stack(
            [self._batch[f"{language}_id"].to_numpy()[rows] for language in LANGUAGES], 1
        )

    def _rows(self, places: Any) -> Any:
        return places if self._selected is None else self._selected[places]

    def _value(self, column: str, place: int) -> Any:
        return self._columns[column][int(self._rows(place))].as_py()

    def _all(self, column: str) -> list[Any]:
        array = self._columns[column]
        return list((array if self._selected is None else array.take(self._selected)).to_pylist())
