"""The cache folder, whole files, file locks between processes, and memory-mapped arrays with reserved disk space."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import open_memmap

from dcclip_cli.errors import DcclipError

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


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """A temporary directory next to `folder` that replaces it when the block ends without an error."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def read_json(file: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file. Raises DcclipError with `hint` if the file is missing."""
    if not file.is_file():
        raise DcclipError(f"{file.parent} has no {file.name}", hint)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DcclipError(f"{file} is not JSON: {error}", "copy the directory again") from None
    if not isinstance(content, dict):
        raise DcclipError(f"{file} is not a JSON object", "copy the directory again")
    return content


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
