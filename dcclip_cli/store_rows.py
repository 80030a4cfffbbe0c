"""The rows of a feature store: looking them up by key, and reading them from its blocks."""

from __future__ import annotations

import io
import os
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import numpy as np

from dcclip_cli import store_index
from dcclip_cli.blocks import Array, Block, Damaged, Ragged, flat, parse
from dcclip_cli.errors import Message
from dcclip_cli.files import OpenFile, remove
from dcclip_cli.store_index import Index, Source, index_of, joined, open_index

SUFFIX = ".block"
_INDEX_ROWS = 2**20  # that are indexed in memory before they get an index file
_INDEXES = 8  # in memory, before they are joined
_OPEN_FILES = 128
_SETTLED_NS = 2_000_000_000  # after which another change of a folder has another time, on any file system


class MissingRows(LookupError):
    """Some of the requested rows are not in the store, or no longer."""


class _OpenFiles:
    """Keeps the files that were read last open; a file that another thread reads is closed by that."""

    def __init__(self) -> None:
        self._open: dict[Path, OpenFile] = {}

    def reader(self, path: Path) -> Callable[[memoryview, int], int]:
        """A function that reads a file into a buffer from an offset on. Raises Damaged where there is no file."""
        try:
            if not hasattr(os, "preadv"):  # Windows, where an open file could not be removed
                return partial(_read_once, path)
            file = self._open.pop(path, None) or OpenFile(path)
        except FileNotFoundError:
            raise Damaged("was removed") from None
        self._open[path] = file
        if len(self._open) > _OPEN_FILES:
            self._open.pop(next(iter(self._open)), None)
        return file.read_into


def _read_once(path: Path, buffer: memoryview, offset: int) -> int:
    with io.FileIO(path) as stream:
        stream.seek(offset)
        return stream.readinto(buffer)


class StoredRows:
    """Rows of named arrays by key, in the blocks of `folder`, or in memory without one.

    Private memory is bounded: tables of more than a million rows are in mapped index files. Threads and forked
    processes may read. `warn` gets a line about each damaged block.
    """

    def __init__(self, folder: Path | None, warn: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self._warn = folder, warn
        self._indexes: list[Index] = []
        self._index_files: dict[str, Index | None] = {}  # by name; None: not used
        self._blocks: dict[str, tuple[Index, int]] = {}  # by the file's name
        self._unusable: set[str] = set()
        self._kinds: dict[str, Array] = {}
        self._files = _OpenFiles()
        self._seen_ns = 0  # the time of the folder when it was last looked into
        self.refresh()

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(source.size for _, _, source in self._sources())

    @property
    def rows(self) -> int:
        """Rows of all blocks."""
        return sum(source.rows for _, _, source in self._sources())

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(1 for _ in self._sources())

    def seconds_per_row(self, name: str) -> float:
        """The mean time that computing a row of this array took, whoever did it."""
        having = [source for index, _, source in self._sources() if name in index.columns]
        return sum(source.seconds for source in having) / max(1, sum(source.rows for source in having))

    # ---- reading

    def missing(self, keys: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """(N,) whether a row lacks one of these arrays."""
        return np.any([numbers < 0 for numbers, _ in self._find(names, keys).values()], axis=0)

    def read(self, name: str, keys: np.ndarray) -> np.ndarray:
        """(N, ...) one array of these rows, in their order.

        Raises MissingRows where one is not there, or is in a block that proves to be damaged and is dropped.
        """
        return flat(self.read_arrays([name], keys)[name])

    def read_arrays(self, names: Sequence[str], keys: np.ndarray) -> dict[str, np.ndarray | Ragged]:
        """Several arrays of these rows, by name."""
        if not len(keys):
            return {name: np.empty((0, 0), np.float16) for name in names}
        found, damaged = dict[str, np.ndarray | Ragged](), 0
        for name, (numbers, positions) in self._find(names, keys).items():
            if missing := int((numbers < 0).sum()):
                raise MissingRows(f"{missing} of {len(keys)} rows are missing")
            array, sources = self._kinds[name], np.empty(len(keys), np.int64)
            offsets, lengths = np.empty((2, len(keys)), np.int64)
            for number in np.unique(numbers).tolist():
                mine = numbers == number
                rows = self._indexes[number].places(name, positions[mine])
                sources[mine], offsets[mine], lengths[mine] = rows
            ends = np.concatenate([[0], np.cumsum(lengths * array.entry_bytes)])
            content = np.empty(int(ends[-1]), np.uint8)
            buffers = [content.data[first:last] for first, last in pairwise(ends.tolist())]
            order = np.lexsort((offsets, sources, numbers))  # as they are on the disk
            cuts = np.flatnonzero(np.diff(numbers[order]) | np.diff(sources[order])) + 1
            for of_block in np.split(order, cuts):
                index, source = self._indexes[numbers[of_block[0]]], int(sources[of_block[0]])
                wanted = ((int(positions[row]), int(offsets[row]), buffers[row]) for row in of_block)
                try:
                    self._read_rows(index, source, index.columns[name], wanted)
                except (Damaged, OSError) as error:
                    self._drop(index, source, _reason(error))
                    damaged += 1
            values = content.view(array.dtype).reshape(-1, *array.shape)
            found[name] = Ragged(values, lengths) if array.ragged else values
        if damaged:
            raise MissingRows(f"{damaged} blocks are damaged")
        return found

    def _read_rows(self, index: Index, number: int, column: int, rows: Iterable[tuple[int, int, memoryview]]) -> None:
        """Read rows (position, offset, buffer) of one block. Raises Damaged where they are not what was written."""
        read = self._reader(index.sources[number].content)
        for position, offset, buffer in rows:
            if read(buffer, offset) != len(buffer):
                raise Damaged("is cut")
            if not index.is_verified(position, column):
                if zlib.crc32(buffer) != index.checks[position, column]:
                    raise Damaged("is damaged")
                index.set_verified(position, column)

    def _reader(self, content: str | bytes) -> Callable[[memoryview, int], int]:
        if isinstance(content, str):
            assert self.folder is not None
            return self._files.reader(self.folder / content)

        def copy(buffer: memoryview, offset: int) -> int:
            buffer[:] = content[offset : offset + len(buffer)]
            return len(buffer)

        return copy

    def _find(self, names: Sequence[str], keys: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For each array the index (N,) and the position in it (N,) of each key, -1 where the array is missing."""
        positions, found = dict[int, np.ndarray](), dict[str, tuple[np.ndarray, np.ndarray]]()
        for name in names:
            numbers, at = np.full((2, len(keys)), -1)
            for number, index in enumerate(self._indexes):
                if name in index.columns and (numbers < 0).any():
                    if number not in positions:
                        positions[number] = index.find(keys)
                    new = (numbers < 0) & (positions[number] >= 0)
                    numbers[new], at[new] = number, positions[number][new]
            found[name] = numbers, at
        return found

    # ---- blocks

    def refresh(self) -> None:
        """Find the blocks that other processes have added since the last look."""
        if self.folder is None or not self.folder.is_dir():
            return
        now, changed = time.time_ns(), self.folder.stat().st_mtime_ns
        if changed == self._seen_ns:
            return
        self._seen_ns = changed if now - changed > _SETTLED_NS else 0
        names = sorted(entry.name for entry in os.scandir(self.folder) if self._is_usable(entry))
        there = {name for name in names if name.endswith(SUFFIX)}
        for name in names:
            if name.endswith(store_index.SUFFIX) and name not in self._index_files:
                self._use_index(self.folder / name, there)
        new = [name for name in sorted(there) if name not in self._blocks and name not in self._unusable]
        self._add_files(self.folder / name for name in new)

    def _is_usable(self, entry: os.DirEntry[str]) -> bool:
        """Whether it is a file; what is something else in the place of a block or an index is removed."""
        if entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
            return True
        if entry.name.endswith((SUFFIX, store_index.SUFFIX)) and entry.name not in self._unusable:
            self._unusable.add(entry.name)
            self._remove(Path(entry.path), Message("is not a file"))
        return False

    def _use_index(self, file: Path, there: Collection[str]) -> None:
        """Use an index file; blocks that it shares with another are used from this one."""
        self._index_files[file.name] = None
        try:
            index = open_index(file)
            self._check_kinds(index.arrays)
        except FileNotFoundError:
            return
        except (Damaged, OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            why = error if isinstance(error, Damaged) else f"cannot be read: {error}"
            self._warn(f"warning: {file} {why}: it is made again from the blocks")
            remove(file)
            return
        self._index_files[file.name] = index
        for number, source in enumerate(index.sources):
            index.alive[number] = source.content in there and source.content not in self._unusable
        if not index.alive.any():
            with suppress(OSError):
                file.unlink()
            return
        self._use(index, first=True)

    def _use(self, index: Index, first: bool = False) -> None:
        """Look rows up in an index; what other indexes have of its blocks is not used any more."""
        for number, source in enumerate(index.sources):
            if isinstance(source.content, str) and index.alive[number]:
                if source.content in self._blocks:
                    other, its_number = self._blocks[source.content]
                    other.alive[its_number] = False
                self._blocks[source.content] = index, number
        self._indexes = [one for one in self._indexes if one.alive.any()]
        # Files first: what they have was written before.
        at = sum(one in self._index_files.values() for one in self._indexes) if first else len(self._indexes)
        self._indexes.insert(at, index)

    def _add_files(self, files: Iterable[Path]) -> None:
        """Add blocks; of many rows, each part gets an index file."""
        blocks, rows = list[tuple[str | bytes, Block]](), 0
        for file in files:
            try:
                block = parse(file)
                self._check_kinds(block.arrays)
            except FileNotFoundError:
                self._unusable.add(file.name)
                continue
            except (Damaged, OSError) as error:
                self._unusable.add(file.name)
                self._remove(file, _reason(error))
                continue
            blocks.append((file.name, block))
            rows += len(block.keys)
            if rows >= _INDEX_ROWS:
                self._add(blocks)
                blocks, rows = [], 0
        if blocks:
            self._add(blocks)

    def _add(self, blocks: Sequence[tuple[str | bytes, Block]]) -> None:
        for index in index_of(blocks):
            self._use(index)
            in_memory = [
                one for one in self._indexes if one.arrays == index.arrays and one not in self._index_files.values()
            ]
            rows = sum(len(one.keys) for one in in_memory)
            if len(in_memory) > _INDEXES or rows >= _INDEX_ROWS:
                whole = joined(in_memory)
                if rows < _INDEX_ROWS or not self._save(whole):
                    self._use(whole)

    def _save(self, index: Index) -> bool:
        """Write an index file and use it; False where the folder cannot be written."""
        name = index.sources[0].content
        if self.folder is None or not isinstance(name, str):
            return False
        file = self.folder / f"{name.removesuffix(SUFFIX)}-{uuid4().hex[:8]}{store_index.SUFFIX}"
        try:
            index.save(file)
        except OSError:
            return False
        self._use_index(file, {str(source.content) for source in index.sources})
        return self._index_files[file.name] is not None

    def _check_kinds(self, arrays: Iterable[Array]) -> None:
        for array in arrays:
            if self._kinds.setdefault(array.name, array) != array:
                raise Damaged(f"has an array {array.name} of another kind")

    def _sources(self) -> Iterator[tuple[Index, int, Source]]:
        """Every block, with its index and its number in it."""
        for index in self._indexes:
            for number, source in enumerate(index.sources):
                if index.alive[number]:
                    yield index, number, source

    def _drop(self, index: Index, number: int, what: str = "") -> None:
        """Remove a block, with a warning if something is wrong with it."""
        index.alive[number] = False
        content = index.sources[number].content
        if isinstance(content, str) and self.folder is not None:
            self._unusable.add(content)
            self._remove(self.folder / content, what)

    def _remove(self, file: Path, what: str) -> None:
        if what:
            self._warn(f"warning: {file} {what}: its rows are computed again")
        remove(file)  # in a read-only folder each process drops it again


def _reason(error: Damaged | OSError) -> str:
    return str(error) if isinstance(error, Damaged) else f"cannot be read: {error.strerror}"
