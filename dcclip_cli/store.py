"""Feature store: arrays under digest keys, in checksummed append-only files that any number of processes share.

A store is a folder for one model with one precision and preprocessing. A row's key is a digest of everything else that
the row depends on, so that a stored row is never out of date. Rows are appended in blocks. A block is
one file, which gets its name when it is complete; a damaged one is dropped with a warning, and its rows are missing.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from itertools import count
from pathlib import Path

import numpy as np

from dcclip_cli.blocks import Block, Damaged, Field, Ragged, Values, pack, parse
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import lock

SUFFIX = ".block"
_CLAIMED = 64  # batches that a filling process claims at once: as far as it reads ahead, and at most one block
_BLOCK_BYTES = 2**28
_STALE_S = 3600  # a temporary file of that age was left by a killed process
_GROWTH = 0.05  # for each second of writing, blocks are so many seconds longer: a long run leaves few of them
_MOST_FILES = 65_536
_ELSEWHERE = "name a folder on another disk with DCCLIP_CACHE"
_numbers = count()


class MissingRows(LookupError):
    """Some of the rows that were asked for are not in the store, or no longer."""


def digests(about: str, items: Iterable[bytes]) -> np.ndarray:
    """Keys (N, 2) of rows that depend on `about` and on one of the items each: 128 bits of BLAKE2b."""
    start = blake2b(about.encode() + b"\0", digest_size=16)
    found = []
    for item in items:
        one = start.copy()
        one.update(item)
        found.append(one.digest())
    return np.frombuffer(b"".join(found), "<u8").reshape(-1, 2)


class FeatureStore:
    """Named arrays by key, under `folder`; without a folder they are kept in memory.

    `warn` gets a line about each damaged block. What is read is what was written, which was finite. Threads and forked
    processes may read; a pickled store opens its folder again. With `optional`, new rows are kept in memory where the
    folder cannot be written.
    """

    def __init__(
        self, folder: Path | None, warn: Callable[[str], None] = lambda _: None, optional: bool = False
    ) -> None:
        self.folder, self._warn, self._optional = folder, warn, optional
        self._blocks: list[Block | None] = []
        self._files: set[str] = set()
        self._new: list[tuple[int, np.ndarray]] = []  # blocks that are not in the index yet, and their keys
        self._keys = np.empty((0, 2), np.uint64)  # the index, sorted by the first halves of the keys
        self._places = np.empty((0, 2), np.int32)  # block and row of each
        self._has: dict[str, np.ndarray] = {}  # which blocks have an array
        self._mapped = lru_cache(_open_files())(self._map)
        self.refresh()

    def __reduce__(self) -> tuple[type, tuple[Path | None]]:
        return type(self), (self.folder,)

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self._blocks if block)

    @property
    def rows(self) -> int:
        """Rows of all blocks."""
        return sum(block.rows for block in self._blocks if block)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return sum(block is not None for block in self._blocks)

    def seconds_per_row(self, name: str) -> float:
        """The mean time that computing a row of this array took, whoever did it."""
        having = [block for block in self._blocks if block and name in block.fields]
        return sum(block.seconds for block in having) / max(1, sum(block.rows for block in having))

    # ---- reading

    def missing(self, keys: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """(N,) whether a row lacks one of these arrays."""
        return np.any([self._find(keys, name) < 0 for name in names], axis=0)

    def read(self, name: str, keys: np.ndarray) -> np.ndarray:
        """(N, ...) one array of these rows, in their order.

        Raises MissingRows where one is not there, or is in a block that proves to be damaged and is dropped.
        """
        return self.read_ragged(name, keys).values

    def read_ragged(self, name: str, keys: np.ndarray) -> Ragged:
        """Like `read`, for rows of different lengths."""
        found = self._find(keys, name)
        if (found < 0).any():
            raise MissingRows(f"{int((found < 0).sum())} of {len(keys)} rows are missing")
        if not len(keys):
            return Ragged(np.empty((0, 0), np.float16), np.empty(0, np.int64))
        rows = []
        for number, row in self._places[found].tolist():
            block = self._blocks[number]
            assert block is not None
            rows.append((number, row, block.fields[name]))
        one = rows[0][2]
        spans = [field.span(row) for _, row, field in rows]
        entries = np.asarray([last - first for first, last in spans]) // one.entry_bytes
        values = np.empty((int(entries.sum()), *one.shape), one.dtype)
        self._copy(rows, spans, values.reshape(-1).view(np.uint8).data)
        return Ragged(values, entries)

    def _copy(self, rows: list[tuple[int, int, Field]], spans: list[tuple[int, int]], to: memoryview) -> None:
        """Copy rows' bytes, and verify those that this process reads for the first time."""
        position, damaged = 0, dict[int, str]()
        for (number, row, field), (first, last) in zip(rows, spans, strict=True):
            try:
                source = self._mapped(number)[first:last]
            except Damaged as why:
                damaged[number] = str(why)
                continue
            to[position : position + last - first] = source
            position += last - first
            if not field.verified[row]:
                if zlib.crc32(source) == field.checks[row]:
                    field.verified[row] = 1
                else:
                    damaged[number] = "is damaged"
        for number, what in damaged.items():
            self._drop(number, what)
        if damaged:
            raise MissingRows(f"{len(damaged)} blocks are damaged")

    def _map(self, number: int) -> memoryview:
        block = self._blocks[number]
        assert block is not None
        if block.file is None:
            return memoryview(block.content)
        try:
            with block.file.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size != block.size:
                    raise Damaged("is cut")
                return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            raise Damaged("was removed") from None

    def _find(self, keys: np.ndarray, name: str) -> np.ndarray:
        """(N,) where the index has these keys with this array, -1 where it does not."""
        self._index()
        if name not in self._has:
            self._has[name] = np.asarray([block is not None and name in block.fields for block in self._blocks], bool)
        found = np.full(len(keys), -1)
        at = np.searchsorted(self._keys[:, 0], keys[:, 0])
        left = np.arange(len(keys))
        while True:  # over equal first halves: rows without this array, or, very rarely, other keys
            left = left[at[left] < len(self._keys)]
            left = left[self._keys[at[left], 0] == keys[left, 0]]
            if not len(left):
                return found
            same = (self._keys[at[left], 1] == keys[left, 1]) & self._has[name][self._places[at[left], 0]]
            found[left[same]] = at[left[same]]
            left = left[~same]
            at[left] += 1

    def _index(self) -> None:
        if not self._new:
            return
        places = [np.stack([np.full(len(keys), number), np.arange(len(keys))], 1) for number, keys in self._new]
        keys = np.concatenate([self._keys, *(keys for _, keys in self._new)])
        order = np.argsort(keys[:, 0], kind="stable")  # of a key's rows, the first that was written counts
        self._keys = keys[order]
        self._places = np.concatenate([self._places, *places])[order].astype(np.int32)
        self._new = []

    # ---- blocks

    def refresh(self) -> list[np.ndarray]:
        """The keys of the blocks that other processes have added since the last look."""
        if self.folder is None or not self.folder.is_dir():
            return []
        found = []
        for name in sorted(os.listdir(self.folder)):
            if name.endswith(SUFFIX) and name not in self._files:
                found.append(self._open(self.folder / name))
            elif name.endswith(".partial"):
                with suppress(OSError):
                    if time.time() - (self.folder / name).stat().st_mtime > _STALE_S:
                        (self.folder / name).unlink()
        return [keys for keys in found if keys is not None]

    def _open(self, file: Path) -> np.ndarray | None:
        """Add a block; its keys, or None where it is damaged or was just removed."""
        try:
            with file.open("rb") as stream:
                block, keys = parse(stream, os.fstat(stream.fileno()).st_size, file)
            self._add(block, keys)
        except FileNotFoundError:
            return None
        except Damaged as why:
            self._unlink(file, str(why))
            return None
        return keys

    def _add(self, block: Block, keys: np.ndarray) -> None:
        for name, field in block.fields.items():
            before = next((one.fields[name] for one in self._blocks if one and name in one.fields), field)
            if (before.dtype, before.shape, before.ends is None) != (field.dtype, field.shape, field.ends is None):
                raise Damaged(f"has an array {name} of another kind")
        self._new.append((len(self._blocks), keys))
        self._blocks.append(block)
        self._has.clear()
        if block.file:
            self._files.add(block.file.name)

    def _drop(self, number: int, what: str = "") -> None:
        """Forget a block, and say `what` is wrong with it."""
        self._index()
        block, self._blocks[number] = self._blocks[number], None
        rest = self._places[:, 0] != number
        self._keys, self._places = self._keys[rest], self._places[rest]
        self._has.clear()
        self._mapped.cache_clear()
        if block and block.file:
            self._files.discard(block.file.name)
            self._unlink(block.file, what)

    def _unlink(self, file: Path, what: str = "") -> None:
        if what:
            self._warn(f"warning: {file} {what}: its rows are computed again")
        with suppress(OSError):  # in a read-only folder each process drops it again
            file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all rows."""
        for number in range(len(self._blocks)):
            self._drop(number)

    def compact(self, name: str, keys: np.ndarray) -> None:
        """Write one array of these rows anew as one block, and remove all others."""
        values, before = self.read(name, keys), len(self._blocks)
        self.write(keys, {name: values})
        for number in range(before):
            self._drop(number)

    # ---- writing

    def write(self, keys: np.ndarray, values: Values) -> None:
        """Add rows, as one block. Raises ValueError where one is not finite, and OSError with the file's name."""
        with self.writer() as writer:
            writer.add(keys, values)

    @contextmanager
    def writer(self, every_s: float = 5.0) -> Iterator[Writer]:
        """Collects rows and adds a block about every `every_s` seconds, and one at the end, however that comes."""
        writer = Writer(self._append, every_s)
        try:
            yield writer
        finally:
            writer.flush()

    def _append(self, parts: list[bytes | memoryview]) -> None:
        if self.folder is None:
            content = b"".join(parts)
            self._add(*parse(io.BytesIO(content), len(content), None))
            return
        file = self.folder / f"{time.time_ns():016x}-{os.getpid()}-{next(_numbers)}{SUFFIX}"  # in the order of time
        partial = file.with_name(f".{file.name}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.writelines(parts)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            if not self._optional or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise OSError(error.errno, error.strerror, str(file)) from None
            self.folder = None
            return self._append(parts)
        if self._open(file) is None:
            raise DcclipError(f"{file} cannot be used after it was written", f"delete {self.folder}, and run again")

    def complete(
        self, name: str, keys: np.ndarray, compute: Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) which rows there are in the end, and one array of those.

        `compute` gets the places in `keys` of the rows that are missing, and yields places and values of those that can
        be computed.
        """
        known = None
        while known is None:
            there = ~self.missing(keys, [name])
            with suppress(MissingRows):  # a damaged block was dropped
                known = self.read(name, keys[there])
        places, values = [np.flatnonzero(there)], [known]
        if not there.all():
            with self.writer() as writer:
                for some, computed in compute(np.flatnonzero(~there)):
                    writer.add(keys[some], {name: computed})
                    places.append(some)
                    values.append(computed)
        values = [some for some in values if len(some)]
        there[(every := np.concatenate(places))] = True
        return there, np.concatenate(values)[np.argsort(every, kind="stable")] if values else known

    def fill(
        self,
        keys: np.ndarray,
        names: Sequence[str],
        compute: Callable[[list[np.ndarray]], Iterator[Values]],
        batch_size: int,
        advance: Callable[[int], None] = lambda _: None,
        start: float = 0.0,
    ) -> None:
        """Compute the rows that lack one of the arrays `names`; returns when there are none.

        `compute` gets batches, arrays of places in `keys`, and yields the values of one after the other. Batches are
        cut from the missing rows in their order, and a block contains whole ones: after a kill the same batches are
        left, so that each row is computed together with the same others. A process begins at the fraction `start` of
        the batches and skips those that other processes have claimed. Raises DcclipError where the disk is too small.
        """
        self.refresh()
        while len(missing := np.flatnonzero(self.missing(keys, names))):
            batches = np.split(missing, range(batch_size, len(missing), batch_size))
            first = int(start * len(batches))
            todo = {keys[batch[0]].tobytes(): batch for batch in [*batches[first:], *batches[:first]]}
            while todo:
                if not self._fill_some(keys, todo, compute, advance):
                    time.sleep(0.2)  # others have claimed them all

    def _fill_some(
        self,
        keys: np.ndarray,
        todo: dict[bytes, np.ndarray],
        compute: Callable[[list[np.ndarray]], Iterator[Values]],
        advance: Callable[[int], None],
    ) -> bool:
        """Claim some batches, compute them and take them out of `todo`; whether there were any to claim."""
        with ExitStack() as locks:
            claimed = self._claim(todo, locks)
            # After claiming, since another process may just have finished what it had claimed.
            for found in self.refresh():
                for name in {key.tobytes() for key in found} & todo.keys():
                    advance(len(todo.pop(name)))
            mine = [name for name in claimed if name in todo]
            rows = sum(map(len, todo.values()))
            with self.writer(every_s=30.0) as writer:
                for name, values in zip(mine, compute([todo[name] for name in mine]) if mine else (), strict=True):
                    writer.add(keys[todo[name]], values)
                    if name == mine[0]:
                        self._check_room(rows / len(todo[name]), values)
                    advance(len(todo.pop(name)))
        for file in claimed.values():
            with suppress(OSError):  # another process is just looking at it, on Windows
                file.unlink()
        return bool(claimed)

    def _claim(self, names: Iterable[bytes], locks: ExitStack) -> dict[bytes, Path]:
        """Lock some batches that no other process has claimed; the locks' files."""
        assert self.folder is not None
        claimed: dict[bytes, Path] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                file = self.folder / f".{name.hex()}.lock"
                if locks.enter_context(lock(file, wait=False)):
                    claimed[name] = file
                if len(claimed) == _CLAIMED:
                    break
        except OSError as error:
            raise DcclipError(f"{self.folder} cannot be written: {error.strerror}", _ELSEWHERE) from None
        return claimed

    def _check_room(self, batches: float, values: Values) -> None:
        """Raise DcclipError if the disk has no room for so many batches like this one."""
        assert self.folder is not None
        # Other ragged rows may be much shorter.
        of_batch = sum(
            given.values.nbytes / 2 if isinstance(given, Ragged) else given.nbytes for given in values.values()
        )
        needed, free = batches * of_batch, shutil.disk_usage(self.folder).free
        if needed > free:
            what = f"{self.folder} needs about {needed / 1e9:,.1f} GB more, and {free / 1e9:,.1f} GB are free"
            raise DcclipError(what, f"free some disk space, or {_ELSEWHERE}")


class Writer:
    """Collects rows for `FeatureStore.writer`; `waiting` is about how many bytes wait for the next block."""

    def __init__(self, append: Callable[[list[bytes | memoryview]], None], every_s: float) -> None:
        self._append, self._every_s = append, every_s
        self._pieces: list[tuple[np.ndarray, Values]] = []
        self._began = self._last = time.monotonic()
        self.waiting = 0

    def add(self, keys: np.ndarray, values: Values) -> None:
        """Take rows in. Raises ValueError where one is not finite: callers say before what gave such numbers."""
        if not len(keys):
            return
        for name, given in values.items():
            numbers = given.values if isinstance(given, Ragged) else given
            if not np.isfinite(numbers).all():
                raise ValueError(f"{name} is not finite")
            self.waiting += numbers.nbytes
        self._pieces.append((keys, values))
        now = time.monotonic()
        if self.waiting >= _BLOCK_BYTES or now - self._last >= self._every_s + _GROWTH * (now - self._began):
            self.flush()

    def flush(self) -> None:
        """Write what was collected as one block; where that fails it is given up."""
        pieces, self._pieces, self.waiting = self._pieces, [], 0
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        if pieces:
            self._append(pack(pieces, seconds))


def _open_files() -> int:
    """How many blocks may be open at once. Each has a file descriptor, of which this process takes all it may have."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS says that there is no limit, and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MOST_FILES)), hard))
        soft = max(soft, min(hard, _MOST_FILES))
    return max(64, soft // 2)
