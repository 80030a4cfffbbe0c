"""Feature store: arrays under digest keys, in checksummed append-only files that any number of processes share.

A store is a folder for one model with one precision and preprocessing. A row's key is a digest of everything else that
the row depends on, so that a stored row is never out of date. Rows are appended in blocks. A block is
one file, which gets its name when it is complete; a damaged one is dropped with a warning, and its rows are missing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np

from dcclip_cli.blocks import Ragged, Values, flat, pack, parse
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_file, lock
from dcclip_cli.store_rows import SUFFIX, MissingRows, StoredRows

__all__ = ["FeatureStore", "MissingRows", "digests"]
_CLAIMED = 64  # batches that a filling process computes before it looks for those of others
_MOST_CLAIMS = 1000
_BLOCK_BYTES = 2**28
_ELSEWHERE = Message("name a folder on another disk with DCCLIP_CACHE")


def digests(about: str, items: Iterable[bytes]) -> np.ndarray:
    """Keys (N,) of rows that depend on `about` and on one of the items each: 128 bits of BLAKE2b."""
    start = about.encode() + b"\0"
    return np.frombuffer(b"".join(blake2b(start + item, digest_size=16).digest() for item in items), "S16")


class FeatureStore(StoredRows):
    """Named arrays by key, in `folder`; without a folder they are kept in memory.

    `warn` gets a line about each damaged block. What is read is what was written, which was finite. Threads and forked
    processes may read. With `optional`, new rows are only kept in memory where the folder cannot be written or is full.
    """

    def __init__(
        self, folder: Path | None, warn: Callable[[str], None] = lambda _: None, optional: bool = False
    ) -> None:
        super().__init__(folder, warn)
        self._optional, self.in_memory = optional, folder is None

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
                        raise ValueError(Message("{name} is not finite", name=name))
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
        if self.folder is None or self.in_memory:
            content = b"".join(parts)
            block = parse(content)
            self._check_kinds(block.arrays)
            return self._add([(content, block)])
        file = self.folder / f"{time.time_ns():016x}-{uuid4().hex[:8]}{SUFFIX}"  # in the order of time
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as partial, partial.open("wb") as stream:
                stream.writelines(parts)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if not self._optional:
                raise OSError(error.errno, error.strerror, str(file)) from None
            self._warn(f"{self.folder} cannot be written ({error.strerror}): what is computed now is not kept")
            self.in_memory = True
            return self._append(parts)
        self._add_files([file])
        if file.name not in self._blocks:
            raise DcclipError(
                "{file} cannot be used after it was written",
                "delete {folder}, and run again",
                file=file,
                folder=self.folder,
            )

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
                raise DcclipError(
                    Message("{folder} cannot be written: {strerror}", folder=self.folder, strerror=error.strerror),
                    _ELSEWHERE,
                ) from None
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
            what = Message(
                "{folder} needs about {needed:,.1f} GB more, and {free:,.1f} GB are free",
                folder=self.folder,
                needed=needed / 1e9,
                free=free / 1e9,
            )
            raise DcclipError(what, Message("free some disk space, or {elsewhere}", elsewhere=_ELSEWHERE))

    def clear(self) -> None:
        """Remove all rows."""
        for index, number, _ in list(self._sources()):
            self._drop(index, number)

    def compact(self, name: str, keys: np.ndarray) -> None:
        """Write one array of these rows as one new block, and remove all others."""
        values, before = self.read(name, keys), list(self._sources())
        self.write([(keys, {name: values})])
        for index, number, source in before:
            current = (
                self._blocks.get(source.content, (index, number))
                if isinstance(source.content, str)
                else (index, number)
            )
            self._drop(*current)
