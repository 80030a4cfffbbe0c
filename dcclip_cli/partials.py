"""Temporary files and folders next to what they become, locked by their process and removed when that is gone.

A lock of the system tells whether the process lives, on whatever machine: it ends with the process. Where there are
none, as on some network file systems, age tells.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dcclip_cli.errors import writing

_NAME = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.(?P<kind>partial|old)", re.DOTALL)
_STALE_S = 24 * 3600  # age at which what cannot be locked counts as left by a killed process
_SWAP_S = 60  # longer than the moment in which a folder is replaced
_GONE_S = 1.0  # in which other threads of a process that exits create or write what is then removed

_own: dict[Path, int | None] = {}  # of this process, with the descriptors that lock them
_swept: set[Path] = set()  # folders whose abandoned files were removed
_creating = threading.RLock()  # for good held by a process that exits
if hasattr(os, "register_at_fork"):  # so that a forked process does not wait for a thread that it does not have
    os.register_at_fork(before=_creating.acquire, after_in_parent=_creating.release, after_in_child=_creating.release)


@contextmanager
def partial(final: Path, folder: bool = False) -> Iterator[Path]:
    """A new empty file or `folder` next to `final`, removed when the block ends unless it was renamed.

    Before it, what killed processes left next to `final` is removed.
    """
    remove_abandoned(final.parent)
    with _creating:
        path = _create(final, folder)
    try:
        with writing(final):
            yield path
    finally:
        remove(path)
        _unlock(path)


def remove_own() -> None:
    """Remove all that this process, which exits now, has not finished; none of its threads can begin more."""
    until = time.monotonic() + _GONE_S
    _creating.acquire(timeout=_GONE_S)
    for path in list(_own):
        remove(path)
        while path.exists() and time.monotonic() < until:  # a folder, into which another thread was writing
            remove(path)


def remove_abandoned(folder: Path) -> None:
    """Remove the partial files and folders in a folder that killed processes left; looks once in each process."""
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):  # no such folder yet
        for entry in os.scandir(folder):
            if _NAME.fullmatch(entry.name):
                remove_if_abandoned(Path(entry.path))


def remove_if_abandoned(path: Path) -> None:
    """Remove a partial file or folder if the process that wrote it is gone; a folder being replaced gets its name back.

    Leaves anything else.
    """
    if not (found := _NAME.fullmatch(path.name)):
        return
    with suppress(OSError):
        age = time.time() - path.stat().st_ctime
        descriptor = os.open(path, os.O_RDONLY)
        try:
            locked = _lock(descriptor)
            if locked is False or age < (_SWAP_S if found["kind"] == "old" else 0 if locked else _STALE_S):
                return
            if found["kind"] == "old" and not (final := path.with_name(found["name"])).exists():
                path.rename(final)
            else:
                remove(path)
        finally:
            os.close(descriptor)


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Lock a folder while the block runs; yields False if another process has locked it."""
    if os.name == "nt":
        yield True
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor) is not False
    finally:
        os.close(descriptor)


def old(path: Path) -> Path:
    """Where the folder that a partial one replaces is while it does."""
    return path.with_suffix(".old")


def _create(final: Path, folder: bool) -> Path:
    while True:
        path = final.with_name(f".{final.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")
        if folder:
            path.mkdir(parents=True)
        _own[path] = None
        if os.name == "nt":  # where an open file could not be renamed
            return path
        try:
            flags = os.O_RDONLY if folder else os.O_CREAT | os.O_EXCL | os.O_RDWR
            descriptor = _own[path] = os.open(path, flags, 0o666)
            _lock(descriptor, wait=True)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return path
        except FileNotFoundError:  # another process has just removed it, before it was locked
            gone = not final.parent.is_dir()
            if gone or (_own[path] is None and not folder):  # the latter where nothing can be created, as in /proc
                _unlock(path)
                number = errno.ENOENT if gone else errno.EOPNOTSUPP
                raise OSError(number, os.strerror(number), str(final)) from None
        except BaseException as error:
            if isinstance(error, OSError):
                error.filename = str(final)
            remove(path)
            _unlock(path)
            raise
        _unlock(path)


def _lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock a file for this process; False if another one has, None where that is not known."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _unlock(path: Path) -> None:
    descriptor = _own.pop(path, None)
    if descriptor is not None:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove what is at a path, also a folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
