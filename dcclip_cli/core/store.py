"""Feature store: arrays under digest keys, in append-only files that any number of processes write
and read.

A store is a folder for one model with one precision and preprocessing. A row's key is a digest of
everything else that the row depends on, so that a stored row is never out of date. Rows are
appended in blocks: safetensors files with `keys` (N, 16), an array of N rows for each name, and
for rows of different lengths `NAME.offsets` (N + 1) as well. A block gets its name when it is
complete. One whose header does not fit its size is removed with a warning, and its rows are
missing; one that the system cannot open is an error. The keys of all rows are sorted, 24 MB for a
million: those of the latest blocks in memory, those of all others in the file `index`, which
processes map. At most _OPEN_FILES blocks are mapped at a time, each with a file descriptor.
"""

import json
import math
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import tee
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import atomic_file, lock, remove

__all__ = [
    "FeatureStore",
    "MissingRows",
    "Ragged",
    "Values",
    "digests",
    "flat",
    "open_block",
    "write_block",
]
SUFFIX = ".safetensors"
_FORMAT = "1"
_KEYS = "keys"
_OFFSETS = ".offsets"
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "|i1",
    "U8": "|u1",
    "U32": "<u4",
}
_TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_OPEN_FILES = 128  # half of what macOS allows a process
_CLAIMED = 4096  # rows that a filling process claims at once, in whole batches
_MOST_CLAIMS = 1000
_BLOCK_BYTES = 2**28
_INDEX = "index"
# blocks that are smaller are merged when there are so many of them
_SMALL_BYTES = 2**20
_MOST_SMALL = 256
_UNINDEXED = 2**20  # rows in memory at which the index is written again


class MissingRows(LookupError):
    """Some of the requested rows are not in the store, or no longer."""


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: `values` (sum of lengths, ...), one row after the other, and
    `lengths` (N,).
    """

    values: np.ndarray
    lengths: np.ndarray


Values = Mapping[str, np.ndarray | Ragged]


def flat(rows: np.ndarray | Ragged) -> np.ndarray:
    """The entries of all rows, one after the other."""
    return rows.values if isinstance(rows, Ragged) else rows


def digests(context: str, items: Iterable[bytes]) -> np.ndarray:
    """Keys (N,) of rows that depend on `context` and on one of the items each: 128 bits of
    BLAKE2b.
    """
    start = context.encode() + b"\0"
    return np.frombuffer(
        b"".join(blake2b(start + item, digest_size=16).digest() for item in items), "S16"
    )


Arrays = Mapping[str, np.ndarray]


def open_block(file: Path) -> Arrays:
    """The arrays in a file, mapped. Raises ValueError for wrong content, FileNotFoundError, else
    DcclipError.
    """
    try:
        with file.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        end = start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        metadata = header.pop("__metadata__")
        arrays = dict[str, np.ndarray]()
        for name, entry in header.items():
            shape = entry["shape"]
            (first, last) = entry["data_offsets"]
            flat = np.frombuffer(content, _TYPES[entry["dtype"]], math.prod(shape), start + first)
            arrays[name] = flat.reshape(shape)
            end = max(end, start + last)
        if metadata["format"] != _FORMAT or end != len(content):
            raise ValueError
        return arrays
    except (ValueError, LookupError, TypeError):
        raise ValueError(Message("not a block of features, or truncated")) from None
    except FileNotFoundError:
        raise
    except OSError as error:  # among them EMFILE, EIO, ESTALE: the rows may be good
        raise DcclipError(
            "{}: cannot open this feature file: {}",
            "check the disk and the file's permissions, or raise the limit of open files "
            "with: ulimit -n 4096",
            *(file, error.strerror),
        ) from None


def write_block(file: Path, arrays: Arrays) -> None:
    """Write arrays to a file, atomically and on the disk when this returns."""
    header: dict[str, object] = {"__metadata__": {"format": _FORMAT}}
    end = 0
    for name, array in arrays.items():
        place = [end, end := end + array.nbytes]
        header[name] = {
            "dtype": _TYPE_NAMES[array.dtype.str],
            "shape": array.shape,
            "data_offsets": place,
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(file) as partial, partial.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            stream.write(array.data)
        stream.flush()
        os.fsync(stream.fileno())


def _joined(pieces: Sequence[tuple[np.ndarray, Values]]) -> Arrays:
    arrays = {_KEYS: np.concatenate([keys for keys, _ in pieces]).view(np.uint8).reshape(-1, 16)}
    for name in pieces[0][1]:
        parts = [values[name] for _, values in pieces]
        if ragged := [part.lengths for part in parts if isinstance(part, Ragged)]:
            arrays[name + _OFFSETS] = np.cumsum(np.concatenate([[0], *ragged]), dtype=np.int64)
        arrays[name] = np.ascontiguousarray(np.concatenate([flat(part) for part in parts]))
    return arrays


_mapped = lru_cache(_OPEN_FILES)(open_block)


class _Table(NamedTuple):
    """The rows of some blocks, sorted by their keys; of equal keys the oldest is first."""

    keys: np.ndarray  # (N,) S16
    block: np.ndarray  # (N,) uint32
    row: np.ndarray  # (N,) uint32


_EMPTY = _Table(np.empty(0, "S16"), *np.empty((2, 0), np.uint32))


def _merged(tables: Sequence[_Table]) -> _Table:
    keys, *columns = map(np.concatenate, zip(*tables, strict=True))
    order = np.argsort(keys, kind="stable")
    return _Table(keys[order], *(column[order] for column in columns))


class _Block(NamedTuple):
    """A block of a store: its file's name, the names of its arrays, its rows and bytes; the arrays
    if in memory.
    """

    file: str
    names: Sequence[str]
    rows: int
    size: int
    arrays: Arrays | None = None


class FeatureStore:
    """Named arrays by key, in `folder`; without a folder they are in memory.

    `warn` gets a line about each block that is removed because its content is wrong; without
    `warn` such blocks are ignored. Threads and forked processes may read. With `optional`, new
    rows are only kept in memory where the folder cannot be written or is full.
    """

    def __init__(
        self, folder: Path | None, warn: Callable[[str], None] | None = None, optional: bool = False
    ) -> None:
        self.folder = folder
        self._warn = warn
        self._optional = optional
        self.in_memory = folder is None
        self._blocks: list[_Block | None] = []  # by number; None: removed
        self._tables = [_EMPTY, _EMPTY]  # that of the index, and that of later blocks
        self._index: tuple[int, int] | None = None  # the time and number of its file
        self._seen: set[str] = set()
        self.refresh()

    @property
    def size(self) -> int:
        return sum(block.size for block in self._blocks if block)

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self._blocks if block)

    @property
    def files(self) -> set[str]:
        return {block.file for block in self._blocks if block and block.file}

    def refresh(self) -> None:
        """Find the blocks that other processes have added since the last look."""
        if not self.folder or not self.folder.is_dir():
            return
        files = {file.name for file in self.folder.glob(f"*{SUFFIX}")}
        index = self.folder / _INDEX
        with suppress(FileNotFoundError, ValueError):  # a damaged index is written again
            state = index.stat().st_mtime_ns, index.stat().st_ino
            if state != self._index and not self.in_memory:
                arrays = open_block(index)
                entries = json.loads(arrays["blocks"].tobytes())
                self._blocks = [
                    _Block(*entry) if entry and entry[0] in files else None for entry in entries
                ]
                self._seen = self.files
                self._tables = [
                    _Table(arrays[_KEYS].reshape(-1).view("S16"), arrays["block"], arrays["row"]),
                    _EMPTY,
                ]
                self._index = state
        for number, stored in enumerate(self._blocks):
            if (
                stored is not None and stored.file and stored.file not in files
            ):  # another process has merged it
                self._blocks[number] = None
        tables = list[_Table]()
        for file in sorted(files - self._seen):  # by time
            if block := self._arrays(open_block, file):
                tables.append(self._table(file, block))
            self._seen.add(file)
        if tables:
            self._tables = [self._tables[0], _merged([self._tables[1], *tables])]
            self._merge_small()
        if self._warn and not self.in_memory and len(self._tables[1].keys) >= _UNINDEXED:
            # Where it cannot be written, or another process is writing it, the rows stay in
            # memory.
            with suppress(OSError), lock(self.folder / f".{_INDEX}.lock", wait=False) as claimed:
                if claimed:
                    table = _merged(self._tables)
                    blocks = json.dumps([entry and entry[:4] for entry in self._blocks])
                    self._tables = [
                        table,
                        _EMPTY,
                    ]  # no longer mapped: Windows replaces no mapped file
                    columns = {
                        "block": table.block,
                        "row": table.row,
                        "blocks": np.frombuffer(blocks.encode(), np.uint8),
                    }
                    write_block(
                        index, {_KEYS: table.keys.view(np.uint8).reshape(-1, 16), **columns}
                    )
                    self.refresh()

    def _merge_small(self) -> None:
        """Write many small blocks as a large one: a folder that is followed adds a block for each
        new file.
        """
        blocks = [
            block for block in self._blocks if block and block.file and block.size < _SMALL_BYTES
        ]
        if len(blocks) < _MOST_SMALL or not self._optional or self.in_memory:
            return
        assert self.folder
        with (
            suppress(OSError, DcclipError),
            lock(self.folder / ".merge.lock", wait=False) as claimed,
        ):
            if not claimed:  # another process merges them
                return
            pieces = dict[tuple[object, ...], list[tuple[np.ndarray, Values]]]()
            for block in blocks:
                arrays = dict(self._arrays(open_block, block.file) or {})
                keys = arrays.pop(_KEYS, np.empty(0, np.uint8)).reshape(-1).view("S16")
                values: dict[str, np.ndarray | Ragged] = {}
                for name in [name for name in arrays if not name.endswith(_OFFSETS)]:
                    offsets = arrays.get(name + _OFFSETS)
                    values[name] = (
                        arrays[name] if offsets is None else Ragged(arrays[name], np.diff(offsets))
                    )
                form = tuple(
                    (name, flat(rows).dtype, flat(rows).shape[1:]) for name, rows in values.items()
                )
                pieces.setdefault(form, []).append((keys, values))
            if not all(self._save(parts)[0] for parts in pieces.values()):  # the disk is full
                return
            _mapped.cache_clear()  # Windows removes no mapped file
            for block in blocks:
                remove(self.folder / block.file)
        self.refresh()

    def missing(self, keys: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """(N,) whether a row lacks one of these arrays."""
        return np.any([self._find(name, keys)[0] < 0 for name in names], axis=0)

    def read(self, name: str, keys: np.ndarray) -> np.ndarray:
        """(N, ...) one array of these rows, in their order. Raises MissingRows where one is not
        there.
        """
        return flat(self.read_arrays([name], keys)[name])

    def read_arrays(self, names: Sequence[str], keys: np.ndarray) -> dict[str, np.ndarray | Ragged]:
        if not len(keys):
            return {name: np.empty((0, 0), np.float16) for name in names}
        try:
            return self._read_arrays(names, keys)
        except MissingRows:  # another process has merged blocks
            self.refresh()
            return self._read_arrays(names, keys)

    def _read_arrays(
        self, names: Sequence[str], keys: np.ndarray
    ) -> dict[str, np.ndarray | Ragged]:
        arrays_by_name = dict[str, np.ndarray | Ragged]()
        for name in names:
            numbers, rows = self._find(name, keys)
            if missing := int((numbers < 0).sum()):
                raise MissingRows(f"{missing} of {len(keys)} rows are missing")
            order = np.lexsort((rows, numbers))  # as they are on the disk
            groups = np.split(
                order, np.flatnonzero(np.diff(numbers[order])) + 1
            )  # one for each block
            template = self._open(numbers[order[0]])
            is_ragged = name + _OFFSETS in template
            lengths = np.ones(len(keys), np.int64)
            for places in groups if is_ragged else ():
                offsets = self._open(numbers[places[0]])[name + _OFFSETS]
                block_rows = rows[places]
                rows[places] = offsets[block_rows]
                lengths[places] = offsets[block_rows + 1] - offsets[block_rows]
            starts = np.cumsum(lengths) - lengths
            values = np.empty((int(lengths.sum()), *template[name].shape[1:]), template[name].dtype)
            for places in groups:
                array = self._open(numbers[places[0]])[name]
                columns = (column[places].tolist() for column in (starts, rows, lengths))
                for start, row, length in zip(*columns, strict=True):
                    values[start : start + length] = array[row : row + length]
            arrays_by_name[name] = Ragged(values, lengths) if is_ragged else values
        return arrays_by_name

    def _find(self, name: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the number of the block that has an array of each key, -1 where none does, and (N,)
        the row in it.
        """
        has = np.asarray([block is not None and name in block.names for block in self._blocks])
        numbers, rows = np.full((2, len(keys)), -1)
        for table in self._tables if len(has) else ():
            places = np.flatnonzero(numbers < 0)
            at = np.searchsorted(table.keys, keys[places])
            while len(places):
                equal = at < len(table.keys)
                equal[equal] = table.keys[at[equal]] == keys[places[equal]]
                places = places[equal]
                at = at[equal]
                stored = has[table.block[at]]
                numbers[places[stored]] = table.block[at[stored]]
                rows[places[stored]] = table.row[at[stored]]
                places = places[~stored]
                at = at[~stored] + 1
        return numbers, rows

    def _open(self, number: int) -> Arrays:
        """The arrays of a block. Raises MissingRows where it was removed, and DcclipError where it
        cannot be opened.
        """
        block = self._blocks[number]
        arrays = block and (block.arrays or self._arrays(_mapped, block.file))
        if arrays is None:
            self._blocks[number] = None
            raise MissingRows("a block was removed")
        return arrays

    def _arrays(self, opened: Callable[[Path], Arrays], name: str) -> Arrays | None:
        """The arrays of a file; None if it was removed, by another process or here because its
        content is wrong.
        """
        assert self.folder
        file = self.folder / name
        try:
            return opened(file)
        except FileNotFoundError:
            return None
        except ValueError as error:
            problem = Message("warning: {}: {}; computing its rows again", file, error)
        # after the error, which keeps the file mapped: Windows removes no such file
        if self._warn:
            self._warn(problem)
            remove(file)
        return None

    def _table(self, file: str, arrays: Arrays) -> _Table:
        """Number a block, in memory where it has no file, and return the table of its rows."""
        count = len(arrays[_KEYS])
        size = sum(array.nbytes for array in arrays.values())
        number = np.full(count, len(self._blocks), np.uint32)
        self._seen.add(file)
        self._blocks.append(_Block(file, [*arrays], count, size, None if file else arrays))
        keys = (
            np.array(arrays[_KEYS]).reshape(-1).view("S16")
        )  # copied: a view would keep the block's file open
        return _Table(keys, number, np.arange(count, dtype=np.uint32))

    def write(self, pieces: Iterable[tuple[np.ndarray, Values]], every_s: float = 5.0) -> None:
        """Add rows (keys, values by name): a block about every `every_s` seconds, and one at the
        end or at an error.

        A thread writes a block while the next pieces are computed. Raises OSError with the file's
        name.
        """
        waiting = list[tuple[np.ndarray, Values]]()
        size = 0
        last = time.monotonic()
        saving = deque[Future[tuple[str, Arrays]]]()

        def save(unfinished: int) -> None:
            """Begin a block of what waits, and finish all but some `unfinished` ones."""
            nonlocal waiting, size, last
            if waiting:
                saving.append(writer.submit(self._save, waiting))
            waiting = []
            size = 0
            last = time.monotonic()
            while len(saving) > unfinished:
                file, arrays = saving.popleft().result()
                # after the blocks of others that were complete before: later, their rows are found
                # first
                if file:
                    self.refresh()
                else:
                    self._tables = [
                        self._tables[0],
                        _merged([self._tables[1], self._table(file, arrays)]),
                    ]

        with ThreadPoolExecutor(1) as writer:
            try:
                for keys, values in pieces:
                    waiting.append((keys, values))
                    size += sum(flat(array).nbytes for array in values.values())
                    if size >= _BLOCK_BYTES or time.monotonic() - last >= every_s:
                        save(1)
            finally:
                save(0)

    def _save(self, pieces: Sequence[tuple[np.ndarray, Values]]) -> tuple[str, Arrays]:
        """Write a block of these pieces; its file's name, empty where it stays in memory, and its
        arrays.
        """
        arrays = _joined(pieces)
        name = ""
        if self.folder and not self.in_memory:
            name = f"{time.time_ns():016x}-{uuid4().hex[:8]}{SUFFIX}"
            try:
                write_block(self.folder / name, arrays)
            except OSError as error:
                if not self._optional:
                    raise OSError(error.errno, error.strerror, str(self.folder / name)) from None
                if self._warn:
                    reason = error.strerror
                    self._warn(
                        Message(
                            "{} cannot be written ({}): new features are not cached",
                            self.folder,
                            reason,
                        )
                    )
                self.in_memory = True
                name = ""
        return name, arrays

    def complete(
        self,
        names: Sequence[str],
        keys: np.ndarray,
        compute: Callable[[np.ndarray], Iterator[tuple[np.ndarray, Values]]],
    ) -> tuple[np.ndarray, dict[str, np.ndarray | Ragged]]:
        """(N,) which rows there are in the end, and their arrays.

        `compute` gets the places in `keys` of the missing rows, and yields places and values of
        those it can compute.
        """
        while True:
            missing = self.missing(keys, names)
            if missing.any():
                computed = compute(np.flatnonzero(missing))
                self.write((keys[places], values) for places, values in computed if len(places))
                missing = self.missing(keys, names)
            with suppress(MissingRows):  # a block was removed meanwhile
                return ~missing, self.read_arrays(names, keys[~missing])

    def fill(
        self,
        keys: np.ndarray,
        names: Sequence[str],
        compute: Callable[[Iterable[np.ndarray]], Iterator[Values]],
        batch_size: int,
        advance: Callable[[int], None] = lambda _: None,
        start: float = 0.0,
    ) -> None:
        """Compute the rows that lack one of the arrays `names`.

        `compute` gets batches, arrays of places in `keys`, and yields the values of each. They are
        cut from the missing rows in their order, and a block contains whole ones: after a kill the
        same batches remain. Of processes that fill a store together, each begins at another
        fraction `start` of the rows, and waits for the others in the end.
        """
        assert self.folder
        self.refresh()
        folder = self.folder
        missing = self.missing(keys, names)

        def hand_out(parts: Iterable[np.ndarray], wait: bool) -> Iterator[np.ndarray]:
            """The batches of the parts that no other process computes."""
            for places in parts:
                before = int(missing[places].sum())
                file = folder / f".{keys[places[:1]].tobytes().hex()}.lock"
                if before and locks.enter_context(lock(file, wait)):
                    locks.callback(remove, file)
                    self.refresh()
                    missing[places] = self.missing(keys[places], names)
                    remaining = places[missing[places]]
                    advance(before - len(remaining))
                    for begin in range(0, len(remaining), batch_size):
                        yield remaining[begin : begin + batch_size]

        def computed(
            parts: Iterable[np.ndarray], wait: bool
        ) -> Iterator[tuple[np.ndarray, Values]]:
            handed, batches = tee(hand_out(parts, wait))
            for batch, values in zip(
                batches, compute(handed), strict=False
            ):  # which begins with the first batch
                missing[batch] = False
                advance(len(batch))
                yield keys[batch], values

        size = batch_size * max(1, max(_CLAIMED, len(keys) // _MOST_CLAIMS) // batch_size)
        parts = np.split(np.arange(len(keys)), range(size, len(keys), size))
        first = int(start * len(parts))
        parts = [*parts[first:], *parts[:first]]
        # In the end, one by one, what other processes compute, or were killed before they had.
        for parts_of_pass, wait in ((parts, False), *(([places], True) for places in parts)):
            with ExitStack() as locks:
                self.write(computed(parts_of_pass, wait), every_s=30.0)

    def clear(self) -> None:
        names = [*self.files, _INDEX]
        self._blocks = []
        self._tables = [_EMPTY, _EMPTY]
        self._index = None
        _mapped.cache_clear()  # Windows removes no mapped file
        for name in names if self.folder else ():
            remove(self.folder / name)  # type: ignore[operator]
