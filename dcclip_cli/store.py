"""Feature store: arrays under digest keys, in checksummed append-only files that any number of processes share.

A store is a folder for one model with one precision and preprocessing. A row's key is a digest of everything else that
the row depends on, so that a stored row is never out of date. Rows are appended in blocks. A block is
one file, which gets its name when it is complete; a damaged one is dropped with a warning, and its rows are missing.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from itertools import accumulate, groupby
from pathlib import Path
from typing import cast
from uuid import uuid4

import numpy as np

from dcclip_cli.blocks import Block, Damaged, Ragged, Values, flat, pack, parse
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import atomic_file, lock

SUFFIX = ".block"
_CLAIMED = 64  # batches that a filling process computes before it looks for those of others
_MOST_CLAIMS = 1000
_BLOCK_BYTES = 2**28
_STALE_S = 3600  # a temporary file of that age was left by a killed process
_ELSEWHERE = "name a folder on another disk with DCCLIP_CACHE"


class MissingRows(LookupError):
    """Some of the requested rows are not in the store, or no longer."""


def digests(about: str, items: Iterable[bytes]) -> np.ndarray:
    """Keys (N,) of rows that depend on `about` and on one of the items each: 128 bits of BLAKE2b."""
    start = about.encode() + b"\0"
    return np.frombuffer(b"".join(blake2b(start + item, digest_size=16).digest() for item in items), "S16")


class FeatureStore:
    """Named arrays by key, in `folder`; without a folder they are kept in memory.

    `warn` gets a line about each damaged block. What is read is what was written, which was finite. Threads and forked
    processes may read. With `optional`, new rows are kept in memory where the folder cannot be written.
    """

    def __init__(
        self, folder: Path | None, warn: Callable[[str], None] = lambda _: None, optional: bool = False
    ) -> None:
        self.folder, self._warn, self._optional = folder, warn, optional
        self._blocks: list[Block | None] = []  # None: dropped
        self._files: set[str] = set()
        self._kinds: dict[str, tuple[object, ...]] = {}
        # The sorted keys of each array, the block and row of each, and blocks that are not sorted in yet.
        self._index: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._new: dict[str, list[int]] = defaultdict(list)
        self.refresh()

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self._blocks if block)

    @property
    def rows(self) -> int:
        """Rows of all blocks."""
        return sum(len(block.keys) for block in self._blocks if block)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return sum(block is not None for block in self._blocks)

    def seconds_per_row(self, name: str) -> float:
        """The mean time that computing a row of this array took, whoever did it."""
        having = [block for block in self._blocks if block and name in block.fields]
        return sum(block.seconds for block in having) / max(1, sum(len(block.keys) for block in having))

    # ---- reading

    def missing(self, keys: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """(N,) whether a row lacks one of these arrays."""
        return np.any([self._find(name, keys)[:, 0] < 0 for name in names], axis=0)

    def read(self, name: str, keys: np.ndarray) -> np.ndarray:
        """(N, ...) one array of these rows, in their order.

        Raises MissingRows where one is not there, or is in a block that proves to be damaged and is dropped.
        """
        return self.read_ragged(name, keys).values

    def read_ragged(self, name: str, keys: np.ndarray) -> Ragged:
        """Like `read`, for rows of different lengths."""
        if not len(keys):
            return Ragged(np.empty((0, 0), np.float16), np.empty(0, np.int64))
        numbers, rows = self._find(name, keys).T.tolist()
        if -1 in numbers:
            raise MissingRows(f"{numbers.count(-1)} of {len(keys)} rows are missing")
        blocks, damaged = [cast(Block, self._blocks[number]) for number in numbers], 0
        fields = [block.fields[name] for block in blocks]
        lengths = [
            1 if one.ends is None else one.ends[row + 1] - one.ends[row] for one, row in zip(fields, rows, strict=True)
        ]
        content = np.empty(sum(lengths) * fields[0].entry_bytes, np.uint8)
        ends = list(accumulate((length * fields[0].entry_bytes for length in lengths), initial=0))
        for number, group in groupby(sorted(range(len(keys)), key=numbers.__getitem__), numbers.__getitem__):
            places = list(group)
            buffers = ((rows[place], content.data[ends[place] : ends[place + 1]]) for place in places)
            try:
                blocks[places[0]].read(name, buffers)
            except Damaged as why:
                self._drop(number, str(why))
                damaged += 1
        if damaged:
            raise MissingRows(f"{damaged} blocks are damaged")
        return Ragged(content.view(fields[0].dtype).reshape(-1, *fields[0].shape), np.asarray(lengths))

    def _find(self, name: str, keys: np.ndarray) -> np.ndarray:
        """(N, 2) the block and the row in it of each key, -1 where the array is missing."""
        known, places = self._sorted(name)
        if not len(known):
            return np.full((len(keys), 2), -1)
        at = np.searchsorted(known, keys).clip(max=len(known) - 1)
        return np.where((known[at] == keys)[:, None], places[at], -1)

    def _sorted(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        known, places = self._index.get(name, (np.empty(0, "S16"), np.empty((0, 2), np.int32)))
        if numbers := self._new[name]:
            new = [(number, block.keys) for number in numbers if (block := self._blocks[number])]
            known = np.concatenate([known, *(keys for _, keys in new)])
            of_new = [np.stack([np.full(len(keys), number), np.arange(len(keys))], 1) for number, keys in new]
            order = np.argsort(known, kind="stable")  # of a key's rows, the first that was written counts
            known, places = known[order], np.concatenate([places, *of_new])[order].astype(np.int32)
        self._index[name] = known, places
        self._new[name] = []
        return known, places

    # ---- blocks

    def refresh(self) -> None:
        """Open the blocks that other processes have added since the last look."""
        if self.folder is None or not self.folder.is_dir():
            return
        for file in sorted(self.folder.iterdir()):
            if file.suffix == SUFFIX and file.name not in self._files:
                self._open(file)
            elif file.suffix == ".partial":
                with suppress(OSError):
                    if time.time() - file.stat().st_mtime > _STALE_S:
                        file.unlink()

    def _open(self, file: Path) -> bool:
        """Add a block; False where it is damaged or was just removed."""
        self._files.add(file.name)
        try:
            self._add(parse(file))
        except FileNotFoundError:
            return False
        except Damaged as why:
            self._remove(file, str(why))
            return False
        return True

    def _add(self, block: Block) -> None:
        for name, field in block.fields.items():
            kind = (field.dtype, field.shape, field.ends is None)
            if self._kinds.setdefault(name, kind) != kind:
                raise Damaged(f"has an array {name} of another kind")
        for name in block.fields:
            self._new[name].append(len(self._blocks))
        self._blocks.append(block)

    def _drop(self, number: int, what: str = "") -> None:
        """Remove a block, with a warning if something is wrong with it."""
        block = self._blocks[number]
        for name in block.fields if block else ():
            known, places = self._sorted(name)
            others = places[:, 0] != number
            self._index[name] = known[others], places[others]
        self._blocks[number] = None
        if block and isinstance(block.source, Path):
            self._remove(block.source, what)

    def _remove(self, file: Path, what: str) -> None:
        if what:
            self._warn(f"warning: {file} {what}: its rows are computed again")
        with suppress(OSError):  # in a read-only folder each process drops it again
            file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all rows."""
        for number in range(len(self._blocks)):
            self._drop(number)

    def compact(self, name: str, keys: np.ndarray) -> None:
        """Write one array of these rows as one new block, and remove all others."""
        values, before = self.read(name, keys), len(self._blocks)
        self.write([(keys, {name: values})])
        for number in range(before):
            self._drop(number)

    # ---- writing

    def write(self, pieces: Iterable[tuple[np.ndarray, Values]], every_s: float = 5.0) -> None:
        """Add rows (keys, values by name): a block about every `every_s` seconds, and one at the end or at an error.

        Raises ValueError where a number is not finite: callers check first, and say what computed it. Raises OSError
        with the file's name.
        """
        waiting, size, last = list[tuple[np.ndarray, Values]](), 0, time.monotonic()
        try:
            for keys, values in pieces:
                for name, given in values.items():
                    if not np.isfinite(flat(given)).all():
                        raise ValueError(f"{name} is not finite")
                    size += flat(given).nbytes
                waiting.append((keys, values))
                seconds = time.monotonic() - last
                if size >= _BLOCK_BYTES or seconds >= every_s:
                    full, waiting, size, last = waiting, [], 0, time.monotonic()
                    self._append(pack(full, seconds))
        finally:
            if waiting:
                self._append(pack(waiting, time.monotonic() - last))

    def _append(self, parts: list[bytes | memoryview]) -> None:
        if self.folder is None:
            return self._add(parse(b"".join(parts)))
        file = self.folder / f"{time.time_ns():016x}-{uuid4().hex[:8]}{SUFFIX}"  # in the order of time
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as partial, partial.open("wb") as stream:
                stream.writelines(parts)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if not self._optional or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise OSError(error.errno, error.strerror, str(file)) from None
            self.folder = None
            return self._append(parts)
        if not self._open(file):
            raise DcclipError(f"{file} cannot be used after it was written", f"delete {self.folder}, and run again")

    def complete(
        self, name: str, keys: np.ndarray, compute: Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) which rows there are in the end, and one array of those.

        `compute` gets the places in `keys` of the rows that are missing, and yields places and values of those that can
        be computed.
        """
        while True:
            missing = self.missing(keys, [name])
            if missing.any():
                self.write((keys[some], {name: rows}) for some, rows in compute(np.flatnonzero(missing)) if len(some))
                missing = self.missing(keys, [name])
            with suppress(MissingRows):  # a damaged block was dropped
                return ~missing, self.read(name, keys[~missing])

    def fill(
        self,
        keys: np.ndarray,
        names: Sequence[str],
        compute: Callable[[list[np.ndarray]], Iterator[Values]],
        batch_size: int,
        advance: Callable[[int], None] = lambda _: None,
        start: float = 0.0,
    ) -> None:
        """Compute the rows that lack one of the arrays `names`.

        `compute` gets batches, arrays of places in `keys`, and yields the values of one after the other. Batches are
        cut from the missing rows in their order, and a block contains whole ones: after a kill the same batches are
        left, so that each row is computed together with the same others. Of processes that fill a store together, each
        begins at another fraction `start` of the rows, and waits for the others in the end. Raises DcclipError where
        the disk is too small.
        """
        self.refresh()
        missing, has_room = self.missing(keys, names), False

        def computed(batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Values]]:
            nonlocal has_room
            for batch, values in zip(batches, compute(batches), strict=True):
                if not has_room:
                    self._check_room(int(missing.sum()) / len(batch), values)
                    has_room = True
                missing[batch] = False
                advance(len(batch))
                yield keys[batch], values

        size = batch_size * max(_CLAIMED, len(keys) // batch_size // _MOST_CLAIMS)
        claims = np.split(np.arange(len(keys)), range(size, len(keys), size))
        first = int(start * len(claims))
        for wait in (False, True):  # in the end, for what other processes compute, or were killed before they had
            for places in [*claims[first:], *claims[:first]]:
                if not (before := int(missing[places].sum())):
                    continue
                with self._claim(keys[places[:1]], wait) as claimed:
                    if claimed:
                        self.refresh()
                        missing[places] = self.missing(keys[places], names)
                        left = places[missing[places]]
                        advance(before - len(left))
                        if len(left):
                            self.write(computed(np.split(left, range(batch_size, len(left), batch_size))), every_s=30.0)

    @contextmanager
    def _claim(self, key: np.ndarray, wait: bool) -> Iterator[bool]:
        """Lock the rows that begin with a key; False if another process has locked them and `wait` is off."""
        assert self.folder is not None
        file = self.folder / f".{key.tobytes().hex()}.lock"
        with ExitStack() as locks:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                claimed = locks.enter_context(lock(file, wait))
            except OSError as error:
                raise DcclipError(f"{self.folder} cannot be written: {error.strerror}", _ELSEWHERE) from None
            yield claimed
        if claimed:
            with suppress(OSError):  # another process is just looking at it, on Windows
                file.unlink()

    def _check_room(self, batches: float, values: Values) -> None:
        """Raise DcclipError if the disk has no room for that many batches like this one."""
        assert self.folder is not None
        # Other ragged rows may be much shorter.
        one = sum(flat(given).nbytes / (2 if isinstance(given, Ragged) else 1) for given in values.values())
        needed, free = batches * one, shutil.disk_usage(self.folder).free
        if needed > free:
            what = f"{self.folder} needs about {needed / 1e9:,.1f} GB more, and {free / 1e9:,.1f} GB are free"
            raise DcclipError(what, f"free some disk space, or {_ELSEWHERE}")
