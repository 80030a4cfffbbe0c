"""Datasets of image-text pairs: indexed tars and Parquet files, embeddings, and several datasets as one."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dcclip_cli.data.block_cache import BlockCache
from dcclip_cli.data.index import Index, find_indexes, read_batch
from dcclip_cli.data.pair import (
    BLOCK,
    LANGUAGES,
    FileDataset,
    Language,
    Lazy,
    Pair,
    PairDataset,
    arrow_captions,
    caption_strings,
    image_digest,
)
from dcclip_cli.data.shard_blocks import BlockPlace, group_block, tar_block
from dcclip_cli.data.shards import SUFFIXES, Columns, open_parquet
from dcclip_cli.data.storage import DataFile, is_url, list_files, shown
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder, json_object
from dcclip_cli.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

CACHE_BYTES = 50 * 10**9
_AGAIN = "write or collect it again"
_CHUNKS = 256  # record batches that are mapped at a time
_LAYOUT = "a .parquet file, a .tar file or a folder of such shards"


class IndexedDataset(PairDataset):
    """Pairs in tars and Parquet files, found through the index of each.

    Nothing but the rows of each index is kept in memory: captions are looked up in the mapped files, and each image is
    compared with its digest when it is read.
    """

    def __init__(
        self, path: str | Path, indexes: Sequence[Index], uncaptioned: bool = False, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """With `uncaptioned`, images without a record belong to it as well; `cache_bytes`: limit of the block cache."""
        import numpy as np

        self.path, self._indexes, self._uncaptioned = path, indexes, uncaptioned
        counts = [index.about.rows if uncaptioned else index.about.captioned for index in indexes]
        self._places = [(shard, batch) for shard, rows in enumerate(counts) for batch in range(len(rows))]
        self._starts = np.concatenate([[0], np.cumsum([*chain.from_iterable(counts)], dtype=np.int64)])
        self._chunk = lru_cache(_CHUNKS)(self._open)
        self._cache = BlockCache(cache_folder() / "blocks", cache_bytes)

    def __reduce__(self) -> tuple[type, tuple[str | Path, Sequence[Index], bool, int]]:
        return type(self), (self.path, self._indexes, self._uncaptioned, self._cache.max_bytes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Pair:
        chunk, row = self._find(index)
        meta = json_object(chunk.value("meta", row), f"{self.path}: meta of pair {chunk.value('key', row)}", _AGAIN)
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
            what = f"{chunk.index.file}: pair {chunk.value('key', row)} has no image bytes"
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
            what = f"{chunk.index.file}: the image of pair {chunk.value('key', row)} has changed since it was indexed"
            raise DcclipError(what, f"index it again: dcclip index --fresh {chunk.index.file}")
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


class EmbeddingDataset(FileDataset):
    """Pairs in a Parquet file with vectors of one length in the column `embedding` in place of images.

    They are a locked image tower's embeddings of images, or points in its space that stand for many images. The whole
    file is read into memory.
    """

    layout = "embeddings in a .parquet file"
    path: Path

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        table = pq.read_table(path, memory_map=True)
        if "key" not in table.column_names:
            what = f"{path} has no column key (found: {', '.join(table.column_names)})"
            raise DcclipError(what, "write a key for each embedding")
        for name in set(LANGUAGES).difference(table.column_names):
            table = table.append_column(name, pa.nulls(table.num_rows))
        self._keys = table["key"].combine_chunks()
        self.embeddings = _vectors(table, path)
        self._captions = {
            language: arrow_captions(
                caption_strings(captions, f"{path}: {language} of pair {row}")
                for row, captions in enumerate(table[language].to_pylist())
            )
            for language in LANGUAGES
        }

    @classmethod
    def find(cls, path: Path, uncaptioned: bool) -> Self | None:
        if path.suffix != ".parquet" or not path.is_file():
            return None
        with open_parquet(list_files(path)[0]) as parquet:
            has_embeddings = "embedding" in parquet.schema_arrow.names
        return cls(path) if has_embeddings else None

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.path,)  # another process reads the file, rather than being sent it

    def keys(self) -> Sequence[str]:
        return Lazy(len(self), lambda row: str(self._keys[row]), lambda: map(str, self._keys))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Pair:
        raise DcclipError(f"{self.path} has embeddings, no images", "only align with lock: image can use them")


def _vectors(table: pa.Table, path: Path) -> np.ndarray:
    import numpy as np

    rows = table["embedding"].to_pylist()
    widths = {len(row) if isinstance(row, list) else 0 for row in rows}
    vectors = np.asarray(rows, np.float32) if len(widths) == 1 else np.full(1, np.nan)
    if rows and (0 in widths or not np.isfinite(vectors).all()):
        raise DcclipError(f"{path}: embedding is not vectors of one length", "write D numbers for each pair")
    return vectors


class ConcatDataset(PairDataset):
    """Datasets one after the other; those with images have to come first."""

    def __init__(self, datasets: Sequence[PairDataset]) -> None:
        self.path = datasets[0].path
        self._datasets = datasets
        self.num_images = sum(dataset.num_images for dataset in datasets)
        self.has_uncaptioned_images = any(dataset.has_uncaptioned_images for dataset in datasets)
        self.firsts = [0, *accumulate(map(len, datasets))]  # the index at which each begins

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> Pair:
        dataset, own = self._at(index)
        return dataset[own]

    def image(self, index: int) -> bytes:
        dataset, own = self._at(index)
        return dataset.image(own)

    def image_digest(self, index: int) -> bytes:
        dataset, own = self._at(index)
        return dataset.image_digest(own)

    def captions(self, language: Language) -> Sequence[tuple[str, ...]]:
        return self._values([dataset.captions(language) for dataset in self._datasets])

    def keys(self) -> Sequence[str]:
        return self._values([dataset.keys() for dataset in self._datasets])

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(dataset.fingerprint for dataset in self._datasets).encode()).hexdigest()

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        import numpy as np

        ids = np.empty((len(indices), len(LANGUAGES)), np.uint64)
        for dataset, places, own in self._split(indices):
            ids[places] = dataset.first_caption_ids(own)
        return ids

    @cached_property
    def blocks(self) -> np.ndarray:
        import numpy as np

        parts = zip(self._datasets, self.firsts, strict=False)
        return np.concatenate([dataset.blocks + first for dataset, first in parts if len(dataset)])

    def will_need(self, indices: np.ndarray) -> None:
        for dataset, _, own in self._split(indices):
            dataset.will_need(own)

    def _at(self, index: int) -> tuple[PairDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.firsts, index) - 1
        return self._datasets[number], index - self.firsts[number]

    def _split(self, indices: np.ndarray) -> Iterator[tuple[PairDataset, np.ndarray, np.ndarray]]:
        """Each dataset that has some of the samples, their places in `indices`, and their indices in the dataset."""
        for number, dataset in enumerate(self._datasets):
            first, end = self.firsts[number : number + 2]
            if len(places := ((indices >= first) & (indices < end)).nonzero()[0]):
                yield dataset, places, indices[places] - first

    def _values(self, parts: list[Sequence[Any]]) -> Lazy[Any]:
        def get(index: int) -> Any:
            number = bisect_right(self.firsts, index) - 1
            return parts[number][index - self.firsts[number]]

        return Lazy(len(self), get, lambda: chain.from_iterable(parts))


LAYOUTS: tuple[type[FileDataset], ...] = (EmbeddingDataset,)
Source = str | Path | Sequence[str | Path]


def open_pairs(
    source: Source,
    columns: Columns | None = None,
    progress: Progress | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> PairDataset:
    """The pairs in files, folders or globs, of tars, Parquet files or one of the LAYOUTS.

    Files without an index are indexed first. `cache_bytes` is the limit of the block cache. Raises DcclipError where
    there are no pairs.
    """
    dataset = find_dataset(source, False, columns, progress, cache_bytes)
    if not dataset:
        layouts = f"name {', '.join([_LAYOUT, *(layout.layout for layout in LAYOUTS)])}"
        empty = "every file in it is empty: collect again, or name another"
        raise DcclipError(f"{named(source)} has no pairs", layouts if dataset is None else empty)
    return dataset


def find_dataset(
    source: Source,
    uncaptioned: bool = False,
    columns: Columns | None = None,
    progress: Progress | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> PairDataset | None:
    """The dataset in files, folders or globs; None where one of them has none of the LAYOUTS.

    `uncaptioned`: also images without captions. Raises DcclipError where nothing is there or it cannot be read.
    """
    columns = columns or Columns()
    found = [_layout(one, uncaptioned, columns) for one in _each(source)]
    if None in found or not found:
        return None
    # Shards that follow each other are one dataset.
    parts: list[PairDataset | list[DataFile]] = []
    for one in found:
        if isinstance(one, list) and parts and isinstance(parts[-1], list):
            parts[-1] += one
        elif one is not None:
            parts.append(one)
    datasets = [
        IndexedDataset(named(source), find_indexes(part, columns, progress), uncaptioned, cache_bytes)
        if isinstance(part, list)
        else part
        for part in parts
    ]
    return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)


def _layout(source: str | Path, uncaptioned: bool, columns: Columns) -> PairDataset | list[DataFile] | None:
    path = Path(source)
    if columns.image is None and not is_url(source):
        for layout in LAYOUTS:
            if path.exists() and (dataset := layout.find(path, uncaptioned)) is not None:
                return dataset
    return shards_at(source) or None


def shards_at(source: Source) -> list[DataFile]:
    """The tars at a path, URL or glob, or where there are none its Parquet files, sorted by name; of a list, of each.

    Raises DcclipError where nothing is there.
    """
    found: list[DataFile] = []
    for one in _each(source):
        files = [file for file in list_files(one) if not file.name.startswith(".")]
        every = ([file for file in files if file.name.endswith(suffix)] for suffix in SUFFIXES)
        found += next((shards for shards in every if shards), [])
    return found


def _each(source: Source) -> Sequence[str | Path]:
    return [source] if isinstance(source, str | Path) else source


def named(source: Source) -> str | Path:
    """The place of data in messages: the path or URL, or the first of several."""
    first = _each(source)[0]
    return shown(first) if is_url(first) else Path(first)


def write_parquet(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as one Parquet file, the same bytes for the same pairs; images are stored as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**vars(pair), "meta": json.dumps(pair.meta, ensure_ascii=False, sort_keys=True)} for pair in pairs]
    strings = pa.list_(pa.string())
    fields = {"key": pa.string(), "image": pa.binary(), "zh": strings, "en": strings, "meta": pa.string()}
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    pq.write_table(table, path, compression="zstd", row_group_size=BLOCK)
