"""Pairs in indexed shards: found through mapped files, read by place, compared with their digests.

Parts of tars in object stores and row groups of Parquet files are read through the block cache: local files of bounded
total size, fetched ahead of their use.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.data.index import Index, read_batch
from dcclip_cli.data.pair import BLOCK, LANGUAGES, ConcatDataset, Language, Lazy, Pair, PairDataset, image_digest
from dcclip_cli.data.remote import DataFile
from dcclip_cli.data.shards import group_images
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_file, cache_folder, json_object, lock, read_at

if TYPE_CHECKING:
    import pyarrow as pa

CACHE_BYTES = 50 * 10**9
SUFFIX = ".block"
_HINT = Message("write it as a JSON object, then index the file again")
_CHUNKS = 1_024  # record batches that are mapped at a time
_TOUCH_S = 30.0  # how often a block's last use is noted


@dataclass(frozen=True)
class Block:
    """A part of a shard that is fetched as a whole: `size` bytes from `first` on, as the shard's index counts.

    `key` names it in the cache, `write` writes it to a file descriptor, `source` is for error messages.
    """

    key: str
    first: int
    size: int
    source: str
    write: Callable[[int], None]


class BlockCache:
    """Blocks in `folder`, at most `max_bytes` of them; any number of processes share it.

    A block appears under its name when it is complete.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._windows: tuple[Mapping[str, Block], ...] = ()  # the one in use and the next

    def read(self, block: Block, offset: int, size: int) -> bytes:
        """Some bytes of a block, which is fetched if it is not here. Raises DcclipError where that fails."""
        while True:
            self.fetch(block)
            with suppress(FileNotFoundError), open(self.file(block), "rb", buffering=0) as stream:  # unless removed now
                return read_at(stream.fileno(), size, offset - block.first)

    def file(self, block: Block) -> Path:
        return self.folder / f"{block.key}{SUFFIX}"

    def fetch(self, block: Block, wait: bool = True) -> bool:
        """Make a block local unless it is; False if another process is about to and `wait` is off.

        Raises DcclipError where that fails.
        """
        if self._is_here(block):
            return True
        self._check_fits(block.source, block.size)
        with lock(self.folder / f".{block.key[:2]}.lock", wait) as acquired:  # one of 256: lock files do not add up
            if not acquired or self._is_here(block):
                return acquired
            with atomic_file(self.file(block)) as path, path.open("r+b", buffering=0) as stream:
                stream.truncate(block.size)  # which others count as well
                blocks, total = [], 0  # the least recently used are removed, until all files are within the limit
                for entry in os.scandir(self.folder):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        total += status.st_size
                        if entry.name.endswith(SUFFIX):
                            blocks.append((status.st_mtime_ns, status.st_size, entry.path))
                for _, size, oldest in sorted(blocks):
                    if total <= self.max_bytes:
                        break
                    Path(oldest).unlink(missing_ok=True)
                    total -= size
                block.write(stream.fileno())
        return True

    def prefetch(self, blocks: Iterable[Block]) -> None:
        """Fetch the blocks of the next window in the background, as far as the cache has room for both windows.

        What cannot be fetched is left to whoever reads it, and meets the error. The processes of a machine begin at
        different blocks, and wait for each other only at the end. Raises DcclipError where the window does not fit the
        cache: each image would fetch its block again.
        """
        window = {block.key: block for block in blocks}
        if window:
            first = next(iter(window.values())).source
            self._check_fits(Message("a shuffle window of {}", first), sum(block.size for block in window.values()))
        self._windows = windows = (*self._windows[-1:], window)
        rank, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))

        def fetch() -> None:
            both = {**windows[0], **windows[-1]}.values()
            totals = accumulate(block.size for block in both)
            pending = [block for block, total in zip(both, totals, strict=True) if total <= self.max_bytes]
            pending.sort(key=lambda block: (block.key not in windows[0], (int(block.key, 16) - rank) % processes))
            skipped = list[Block]()
            for block in chain(pending, skipped):
                if self._windows is not windows:
                    return  # the rest is fetched when it is read, or by the thread of the next window
                with suppress(DcclipError, OSError):
                    if not self.fetch(block, wait=block in skipped):
                        skipped.append(block)

        threading.Thread(target=fetch, name="prefetch", daemon=True).start()

    def _check_fits(self, source: str, size: int) -> None:
        if size > self.max_bytes:
            sizes = size / 1e9, self.max_bytes / 1e9
            message = Message("{} needs {:.3g} GB in the block cache, which is limited to {:.3g} GB", source, *sizes)
            raise DcclipError(message, "increase data.cache_gb, or reduce data.shuffle_window")

    def _is_here(self, block: Block) -> bool:
        """Whether a block is local, a file of its size; its use is noted."""
        with suppress(FileNotFoundError):
            status = os.stat(self.file(block))
            if status.st_size == block.size:
                if time.time() - status.st_mtime > _TOUCH_S:
                    os.utime(self.file(block))
                return True
        return False


class IndexedDataset(ConcatDataset):
    """Pairs in tars and Parquet files, found through the index of each: its record batches, one after the other.

    Only the number of rows of each index is in memory: captions are looked up in the mapped files, and each image is
    compared with its digest when it is read.
    """

    def __init__(
        self, path: str | Path, indexes: Sequence[Index], uncaptioned: bool = False, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """With `uncaptioned`, images without a record belong to it as well; `cache_bytes`: limit of the block cache."""
        self.path, self._indexes, self._uncaptioned = path, list(indexes), uncaptioned
        self.is_remote = any(index.file.is_remote for index in indexes)
        counts = [index.metadata.rows if uncaptioned else index.metadata.captioned for index in indexes]
        self._places = [(shard, batch) for shard, rows in enumerate(counts) for batch in range(len(rows))]
        self.firsts = [0, *accumulate(chain.from_iterable(counts))]
        self._cache = BlockCache(cache_folder() / "blocks", cache_bytes)
        count, chunk = len(self._places), lru_cache(_CHUNKS)(self._chunk)
        self._datasets = Lazy(count, chunk, lambda: map(self._chunk, range(count)))

    def __reduce__(self) -> tuple[type, tuple[str | Path, Sequence[Index], bool, int]]:
        return type(self), (self.path, self._indexes, self._uncaptioned, self._cache.max_bytes)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(index.metadata.sha256 for index in self._indexes).encode()).hexdigest()

    @cached_property
    def blocks(self) -> np.ndarray:
        """(M,) the first sample of each block: up to 8,192 samples of a tar, or a row group of a Parquet file."""
        firsts = [np.zeros(1, np.int64)]
        for (shard, batch), (first, end) in zip(self._places, pairwise(self.firsts), strict=True):
            if not self._indexes[shard].metadata.groups:
                firsts.append(np.arange(first, end, BLOCK))
            elif not batch:
                firsts.append(first + np.cumsum([0] + [rows for rows, _ in self._indexes[shard].metadata.groups])[:-1])
        return np.unique(np.concatenate(firsts))

    def first_of(self, shard: int) -> int:
        """The first sample of a shard or of those after it."""
        return self.firsts[bisect_left(self._places, (shard, 0))]

    def will_need(self, indices: np.ndarray) -> None:
        if not all(map(_is_direct, self._indexes)):
            self._cache.prefetch(block for chunk, _, rows in self._split(indices) for block in chunk.blocks_of(rows))  # type: ignore[attr-defined]

    def _chunk(self, number: int) -> _Chunk:
        shard, batch = self._places[number]
        index = self._indexes[shard]
        before = sum(index.metadata.rows[:batch])
        selected = not self._uncaptioned and index.metadata.captioned[batch] < index.metadata.rows[batch]
        return _Chunk(index, read_batch(index, batch), before, selected, self._cache)


def _is_direct(index: Index) -> bool:
    """Whether images are read from the file itself, a tar on disk, and not through the block cache."""
    return not (index.metadata.groups or index.file.is_remote)


class _Chunk(PairDataset):
    """The pairs in a record batch of an index; with `selected`, only those that have captions."""

    def __init__(self, index: Index, batch: pa.RecordBatch, before: int, selected: bool, cached: BlockCache) -> None:
        self.path, self._index, self._batch, self._before, self._cache = str(index.file), index, batch, before, cached
        self._offset, self._size = batch["offset"].to_numpy(), batch["size"].to_numpy()
        self._columns = {name: batch[name] for name in ("key", *LANGUAGES, "meta", "digest")}
        self._selected = np.flatnonzero(batch["captioned"].to_numpy(zero_copy_only=False)) if selected else None
        self._group_ends = np.cumsum([rows for rows, _ in index.metadata.groups])
        self._block = cache(self._make_block)

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
        """The bytes of a sample's image. Raises DcclipError where they are not those that were indexed."""
        row, file = self._rows(index), self._index.file
        offset, size = int(self._offset[row]), int(self._size[row])
        if size < 0:
            message = Message("{}: pair {} has no image data", file, self._value("key", index))
            raise DcclipError(message, "remove the pair, or add its image")
        block = next(iter(self.blocks_of(index)), None)
        image = self._cache.read(block, offset, size) if block else file.read(offset, size)
        if image_digest(image) != self.image_digest(index):
            if block:
                self._cache.file(block).unlink(missing_ok=True)  # in case it is the cache that is damaged
            key = self._value("key", index)
            message = Message("{}: the image of pair {} changed after it was indexed", file, key)
            raise DcclipError(message, Message("index the data again: dcclip index --fresh {}", file))
        return image

    def image_digest(self, index: int) -> bytes:
        return bytes(self._value("digest", index))

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        rows = self._rows(indices)
        return np.stack([self._batch[f"{language}_id"].to_numpy()[rows] for language in LANGUAGES], 1)

    def blocks_of(self, places: Any) -> list[Block]:
        """The blocks that the images of one or several samples are read from; none for a tar on disk."""
        if _is_direct(self._index):
            return []
        rows, groups = self._rows(places), self._index.metadata.groups
        numbers = self._group_ends.searchsorted(self._before + rows, "right") if groups else rows // BLOCK
        return [self._block(number) for number in np.unique(numbers).tolist()]

    def _rows(self, places: Any) -> Any:
        return places if self._selected is None else self._selected[places]

    def _value(self, column: str, place: int) -> Any:
        return self._columns[column][int(self._rows(place))].as_py()

    def _all(self, column: str) -> list[Any]:
        array = self._columns[column]
        return list((array if self._selected is None else array.take(self._selected)).to_pylist())

    def _make_block(self, number: int) -> Block:
        """The images of a row group, one after the other; or the bytes of a tar that have the images of BLOCK rows."""
        file, metadata = self._index.file, self._index.metadata
        if metadata.groups:
            part: tuple[int, ...] = (number,)
            source: str = Message("{}, row group {}", file, number)
            first, size = 0, metadata.groups[number][1]
            write = partial(_write_group, file, number, metadata.columns.get("image", "image"))
        else:
            rows = slice(number * BLOCK, (number + 1) * BLOCK)
            first, end = int(self._offset[rows].min()), int((self._offset[rows] + self._size[rows]).max())
            part, size, source = (first, end), end - first, str(file)
            write = partial(file.read_into, offset=first, size=size)
        key = hashlib.sha256(repr((metadata.sha256, *part)).encode()).hexdigest()[:32]  # by content, wherever that is
        return Block(key, first, size, source, write)


def _write_group(file: DataFile, group: int, column: str, descriptor: int) -> None:
    with open(descriptor, "wb", buffering=1 << 20, closefd=False) as target:
        target.writelines(image or b"" for image in group_images(file, group, column))
