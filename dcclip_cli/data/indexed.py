"""Pairs in indexed shards: found through mapped files, read by place, compared with their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli.data.block_cache import BlockCache
from dcclip_cli.data.index import Index, read_batch
from dcclip_cli.data.pair import BLOCK, LANGUAGES, Language, Lazy, Pair, PairDataset, image_digest
from dcclip_cli.data.shard_blocks import BlockPlace, group_block, tar_block
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import cache_folder, json_object
from dcclip_cli.progress import Progress, Silent

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

CACHE_BYTES = 50 * 10**9
_HINT = "write it as a JSON object, then index the file again"
_CHUNKS = 1_024  # record batches that are mapped at a time


class IndexedDataset(PairDataset):
    """Pairs in tars and Parquet files, found through the index of each.

    Only the number of rows of each index is in memory: captions are looked up in the mapped files, and each image is
    compared with its digest when it is read.
    """

    def __init__(
        self,
        path: str | Path,
        indexes: Sequence[Index],
        uncaptioned: bool = False,
        cache_bytes: int = CACHE_BYTES,
        progress: Progress | None = None,
    ) -> None:
        """With `uncaptioned`, images without a record belong to it as well; `cache_bytes`: limit of the block cache.

        `progress` is told of indexes that prove to be damaged, and are written again.
        """
        import numpy as np

        self.path, self._indexes, self._uncaptioned = path, list(indexes), uncaptioned
        counts = [index.about.rows if uncaptioned else index.about.captioned for index in indexes]
        self._places = [(shard, batch) for shard, rows in enumerate(counts) for batch in range(len(rows))]
        self._starts = np.concatenate([[0], np.cumsum([*chain.from_iterable(counts)], dtype=np.int64)])
        self._chunk = lru_cache(_CHUNKS)(self._open)
        self._cache = BlockCache(cache_folder() / "blocks", cache_bytes, (progress or Silent()).say)

    def __reduce__(self) -> tuple[type, tuple[str | Path, Sequence[Index], bool, int]]:
        return type(self), (self.path, self._indexes, self._uncaptioned, self._cache.max_bytes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pair:
        chunk, row = self._find(index)
        meta = json_object(chunk.value("meta", row), f"{self.path}: meta of pair {chunk.value('key', row)}", _HINT)
        zh, en = (tuple(chunk.value(language, row)) for language in LANGUAGES)
        return Pair(chunk.value("key", row), self.image(index), zh, en, meta)

    def keys(self) -> Sequence[str]:
        return self._values("key")

    def captions(self, language: Language) -> Sequence[tuple[str, ...]]:
        return self._values(language, tuple)

    def image(self, index: int) -> bytes:
        """The bytes of a sample's image. Raises DcclipError where they are not those that were indexed."""
        chunk, row = self._find(index)
        offset, size = int(chunk.offset[row]), int(chunk.size[row])
        if size < 0:
            what = Message("{}: pair {} has no image bytes", chunk.index.file, chunk.value("key", row))
            raise DcclipError(what, "leave the pair out, or write its image")
        place, digest = chunk.place(row), chunk.value("digest", row)
        if place is None:
            image = chunk.index.file.read(offset, size)
        else:
            image = self._cache.read(place.block, offset - place.first, size)
            if image_digest(image) != digest:  # a crash of the machine may have damaged the cache
                self._cache.discard(place.block)
                image = self._cache.read(place.block, offset - place.first, size)
        if image_digest(image) != digest:
            what = Message(
                "{}: the image of pair {} has changed since it was indexed", chunk.index.file, chunk.value("key", row)
            )
            raise DcclipError(what, Message("index it again: dcclip index --fresh {}", chunk.index.file))
        return image

    def image_digest(self, index: int) -> bytes:
        chunk, row = self._find(index)
        return bytes(chunk.value("digest", row))

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(index.about.sha256 for index in self._indexes).encode()).hexdigest()

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        import numpy as np

        ids = np.empty((len(indices), len(LANGUAGES)), np.uint64)
        numbers = np.searchsorted(self._starts, indices, "right") - 1
        order = np.argsort(numbers, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            if len(places):
                number = int(numbers[places[0]])
                rows = self._chunk(number).rows(indices[places] - self._starts[number])
                for column, language in enumerate(LANGUAGES):
                    ids[places, column] = self._chunk(number).batch[f"{language}_id"].to_numpy()[rows]
        return ids

    @cached_property
    def blocks(self) -> np.ndarray:
        """(M,) the first sample of each block: up to 8,192 samples of a tar, or a row group of a Parquet file."""
        import numpy as np

        found = [np.zeros(1, np.int64)]
        for number, (shard, batch) in enumerate(self._places):
            first, end = self._starts[number : number + 2].tolist()
            if not self._indexes[shard].about.groups:
                found.append(np.arange(first, end, BLOCK))
            elif not batch:
                found.append(first + np.cumsum([0] + [rows for rows, _ in self._indexes[shard].about.groups])[:-1])
        return np.unique(np.concatenate(found))

    def will_need(self, indices: np.ndarray) -> None:
        import numpy as np

        if not any(index.about.groups or index.file.is_remote for index in self._indexes):
            return  # tars on disk
        starts = self.blocks
        needed = []
        for number in np.unique(np.searchsorted(starts, indices, "right") - 1).tolist():
            chunk, first = self._find(int(starts[number]))
            end = int(starts[number + 1]) if number + 1 < len(starts) else len(self)
            last = self._find(end - 1)[1]
            needed += [place.block for row in chunk.block_rows(first, last) if (place := chunk.place(row)) is not None]
        if needed:
            self._cache.prefetch(needed)

    # ---- chunks: the record batches of all indexes, one after the other

    def _open(self, number: int) -> _Chunk:
        shard, batch = self._places[number]
        index = self._indexes[shard]
        before = sum(index.about.rows[:batch])
        selected = not self._uncaptioned and index.about.captioned[batch] < index.about.rows[batch]
        return _Chunk(index, read_batch(index, batch), before, selected)

    def _find(self, index: int) -> tuple[_Chunk, int]:
        """The chunk of a sample, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(self._starts.searchsorted(index, "right")) - 1
        chunk = self._chunk(number)
        return chunk, chunk.row(index - int(self._starts[number]))

    def _values(self, column: str, of: Callable[[Any], Any] = lambda value: value) -> Lazy[Any]:
        def get(index: int) -> Any:
            chunk, row = self._find(index)
            return of(chunk.value(column, row))

        def iterate() -> Iterator[Any]:
            chunks = (self._open(number) for number in range(len(self._places)))
            return (of(value) for chunk in chunks for value in chunk.values(column))

        return Lazy(len(self), get, iterate)


class _Chunk:
    """A record batch of an index; with `selected`, only its rows that have captions."""

    def __init__(self, index: Index, batch: pa.RecordBatch, before: int, selected: bool) -> None:
        import numpy as np

        self.index, self.batch, self._before = index, batch, before
        self.offset, self.size = batch["offset"].to_numpy(), batch["size"].to_numpy()
        self._columns = {name: batch[name] for name in ("key", *LANGUAGES, "meta", "digest")}
        self._selected = np.flatnonzero(batch["captioned"].to_numpy(zero_copy_only=False)) if selected else None
        self._places: dict[int, BlockPlace] = {}
        self._group_ends = np.cumsum([rows for rows, _ in index.about.groups])

    def row(self, place: int) -> int:
        return place if self._selected is None else int(self._selected[place])

    def rows(self, places: np.ndarray) -> np.ndarray:
        return places if self._selected is None else self._selected[places]

    def value(self, column: str, row: int) -> Any:
        return self._columns[column][row].as_py()

    def values(self, column: str) -> list[Any]:
        array = self._columns[column]
        return list((array if self._selected is None else array.take(self._selected)).to_pylist())

    def block_rows(self, first: int, last: int) -> range:
        """A row of each block that rows from `first` to `last` are in; of a Parquet file, of the first block alone."""
        if self.index.about.groups:
            return range(first, first + 1)
        return range(first - first % BLOCK, last + 1, BLOCK)

    def place(self, row: int) -> BlockPlace | None:
        """The block that a row's image is read from; None for a tar on disk, which is read directly."""
        groups, file = self.index.about.groups, self.index.file
        if not groups and not file.is_remote:
            return None
        number = int(self._group_ends.searchsorted(self._before + row, "right")) if groups else row // BLOCK
        if number not in self._places:
            self._places[number] = group_block(self.index, number) if groups else self._tar_block(number)
        return self._places[number]

    def _tar_block(self, number: int) -> BlockPlace:
        rows = slice(number * BLOCK, (number + 1) * BLOCK)
        first, end = int(self.offset[rows].min()), int((self.offset[rows] + self.size[rows]).max())
        return tar_block(self.index, first, end)
