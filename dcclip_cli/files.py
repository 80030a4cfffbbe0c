"""The cache folder, whole files, file locks between processes, and memory-mapped arrays with reserved disk space."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib.format import open_memmap

_ZEROS = bytes(2**20)


def cache_folder() -> Path:
    """Where what can be made again is kept: $DCCLIP_CACHE, else `dcclip` in the user's cache folder."""
    if given := os.environ.get("DCCLIP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcclip"


@contextmanager
def lock(file: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process has the lock named by `file` while the block runs; False only without `wait`.

    The system releases the lock of a killed process. `file` is created and may be left there, empty.
    """
    from filelock import FileLock, Timeout

    held = FileLock(file)
    try:
        held.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file under a temporary name that it takes last: a killed process leaves the one before."""
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    partial.replace(file)


def new_array(file: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped .npy file of zeros. A full disk raises OSError here, and no SIGBUS when a row is written."""
    array = open_memmap(file, "w+", dtype, shape)
    try:
        with file.open("r+b") as stream:
            _reserve(stream, array.offset, array.nbytes)
    except OSError as error:
        del array  # Windows removes no file that is mapped
        file.unlink()
        raise OSError(error.errno, error.strerror, str(file)) from None
    return array


def _reserve(stream: IO[bytes], first: int, size: int) -> None:
    """Take disk space for `size` zeros, `first` bytes from the start. macOS and Windows have no posix_fallocate."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), first, size)
        return
    stream.seek(first)
    for start in range(0, size, len(_ZEROS)):
        stream.write(_ZEROS[: size - start])
