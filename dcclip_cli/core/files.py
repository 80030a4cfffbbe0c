"""Files: atomic writes under temporary names, locks between processes, checksums, and the cache
folder.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from dcclip_cli.core.errors import DcclipError, Message, writing

T = TypeVar("T")
AnyPath = TypeVar("AnyPath", bound=str | os.PathLike[str])
_BLOCK_BYTES = 1 << 23
# of what is being written: its name, the writer's process, _process_space() and a random number
_PARTIAL = re.compile(
    r"\..+\.(?P<process>\d+)-(?P<space>[0-9a-f]{8})?[0-9a-f]{8}\.(?P<kind>partial|old)", re.DOTALL
)
_position_lock = (
    threading.Lock()
)  # held from moving a file's position until its use, on Windows, which has no pread
# age at which a partial file counts as left by a killed process, perhaps of another machine
_STALE_S = 24 * 3600


def cache_folder() -> Path:
    """The folder for data that can be computed again: $DCCLIP_CACHE, else `dcclip` in the user's
    cache folder.
    """
    if folder := os.environ.get("DCCLIP_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcclip"
    except RuntimeError:  # of Path.home()
        raise DcclipError(
            "this user has no home folder for the cache", "set DCCLIP_CACHE to a folder"
        ) from None


# Thumbnails and deleted files of Synology, QNAP, Windows and Linux, where they are not hidden.
_SERVICE_FOLDERS = {"@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"}
_SERVICE_FOLDERS |= {"$RECYCLE.BIN", "System Volume Information", "lost+found"}


def is_listed(name: str) -> bool:
    """Whether a file or folder in a folder of images is the user's: not hidden, no thumbnails, no
    deleted files.
    """
    return not (name.startswith(".") or name in _SERVICE_FOLDERS)


def is_within(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path, with links followed, is in one of the real `folders`, and not hidden or
    deleted there.
    """
    real = Path(os.path.realpath(path))
    tops = filter(real.is_relative_to, folders)
    return any(all(map(is_listed, real.relative_to(top).parts)) for top in tops)


def several(paths: AnyPath | Iterable[AnyPath]) -> Iterable[AnyPath]:
    """The paths, which may be a single one."""
    return [paths] if isinstance(paths, str | os.PathLike) else paths


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that a file or folder is on, or will be on."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(
        part for part in (path.absolute(), *path.absolute().parents) if os.path.exists(part)
    )


@contextmanager
def lock(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock named by `file` while the block runs; yields False if another process holds it
    and `wait` is off.

    The system releases the lock of a killed process. `file` is created and may be left there,
    empty.
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


@contextmanager
def partial(final: Path, folder: bool = False) -> Iterator[Path]:
    """A new empty file or `folder` next to `final`, removed at the end unless renamed; and of
    killed processes.

    The folders above it are created.
    """
    remove_stale(final.parent)
    number = _process_space() + os.urandom(4).hex()
    path = final.with_name(f".{final.name}.{os.getpid()}-{number}.partial")
    try:
        with writing(final):
            if (
                not final.parent.exists()
            ):  # a file there is an error of the next line, which says so
                final.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if folder else path.touch(exist_ok=False)
            yield path
    finally:
        remove(path)


@cache
def remove_stale(folder: Path) -> None:
    """Remove the partial files and folders in a folder whose writers are gone; once in each
    process.
    """
    with suppress(OSError):  # no such folder yet
        for path in folder.iterdir():
            match = _PARTIAL.fullmatch(path.name)
            if match and (_is_of_ended_process(match) or _is_old(path)):
                remove(path)


def _is_of_ended_process(match: re.Match[str]) -> bool:
    if match["kind"] == "old" or not match["space"] or match["space"] != _process_space():
        return False  # what a new folder replaces may be the only one: not removed at once
    try:
        os.kill(int(match["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        return False
    return False


def _is_old(path: Path) -> bool:
    changed = [file.lstat().st_mtime for file in (path, *path.rglob("*"))]
    return time.time() - max(changed) > _STALE_S


@cache
def _process_space() -> str:
    """What tells this boot of Linux, or this container, from others, whose processes have the same
    numbers; "" elsewhere.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:8]


def remove(path: Path) -> None:
    """Remove what is at a path, also a folder; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary path that replaces `file` at the end of the block, and is removed if it raises."""
    with partial(file) as path:
        yield path
        path.replace(file)


def atomic_write(file: Path, content: bytes | str) -> None:
    """Write a file under a temporary name and move it into place; text as UTF-8 with LF line ends."""
    with atomic_file(file) as path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty temporary folder next to `folder` that replaces it when the block ends, removed if
    it raises.
    """
    with partial(folder, folder=True) as path:
        yield path
        old = path.with_suffix(".old")
        if folder.exists():
            folder.rename(old)
        path.rename(folder)
        remove(old)


_SPECIAL = {  # by the first letter of `ls -l`
    "p": Message("a pipe"), "c": Message("a device"), "b": Message("a device"), "s": Message("a socket"),
}  # fmt: skip
_ORDINARY = {"file": Message("file"), "folder": Message("folder")}


def refuse_special(path: Path, expected: Literal["file", "folder"] = "file") -> None:
    """Raise DcclipError if `path` is a pipe, a device or a socket: reading one may never end."""
    try:
        kind = _SPECIAL.get(stat.filemode(path.stat().st_mode)[0])
    except (OSError, ValueError):  # a missing file or an impossible name: opening it reports that
        return
    if kind:
        raise DcclipError(
            "{0} is {1}, not a {2}", "give a regular {2}", path, kind, _ORDINARY[expected]
        )


def check_target(path: Path, folder: bool) -> None:
    """Raise the error that writing `path`, as a folder or a file, would end in, as far as that is
    known before.
    """
    refuse_special(path, "folder" if folder else "file")
    if os.path.lexists(path):
        is_folder = stat.S_ISDIR(path.stat().st_mode)  # raises for links in a circle
        if is_folder != folder:
            number = errno.EISDIR if is_folder else errno.ENOTDIR
            raise OSError(number, os.strerror(number), str(path))
    else:
        with suppress(FileNotFoundError):
            path.lstat()  # raises for a name too long, and where a parent is a file
    if not os.access(_existing(path), os.W_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(_existing(path)).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(path))


def link_or_copy(source: Path, target: Path) -> None:
    """Let `target` be another name of the file `source`, or a copy where the file system has no
    such links.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """At most `size` bytes of an open file from `offset` on; threads may read at once."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _position_lock:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


class OpenFile:
    """A file that is read by offset from any process or thread; it is closed when nothing refers
    to it any more.
    """

    def __init__(self, file: Path | str) -> None:
        self._stream = open(file, "rb", buffering=0)  # noqa: SIM115

    def read(self, offset: int, size: int) -> bytes:
        return read_at(self._stream.fileno(), size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._stream.close()


def read_bytes(file: Path, most_bytes: int = -1) -> bytes:
    """The content of a file, at most its first bytes; every error names it."""
    with writing(file), file.open("rb") as stream:
        return stream.read(most_bytes)


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        # Few calls on large blocks: a thread has to wait for Python's lock after each.
        buffer = memoryview(bytearray(min(_BLOCK_BYTES, max(1, os.fstat(stream.fileno()).st_size))))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def write_json(file: Path, content: object, sort_keys: bool = False) -> None:
    """Write a value as indented JSON in UTF-8, atomically."""
    atomic_write(file, json_text(content, sort_keys))


def json_text(content: object, sort_keys: bool = False) -> bytes:
    """A value as indented JSON in UTF-8; what cannot be encoded is replaced."""
    return (json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n").encode(
        errors="replace"
    )


def read_json(file: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file. Raises DcclipError with `hint` if the file is missing or
    something else.
    """
    if not file.is_file():
        raise DcclipError("{} has no {}", hint, file.parent, file.name)
    return json_object(read_bytes(file), str(file), hint or Message("copy the directory again"))


def read_cached(
    file: Path, read: Callable[[dict[str, Any]], T], say: Callable[[str], None]
) -> T | None:
    """What `read` makes of a cache's JSON object; None if there is none, or after a warning if it
    is damaged.
    """
    if not os.path.lexists(file):
        return None
    try:
        return read(read_json(file, ""))
    except (DcclipError, OSError, AttributeError, LookupError, TypeError, ValueError):
        say(Message("warning: {} cannot be read; creating it again", file))
        remove(file)
        return None


def validated(validate: Callable[[Any], T], content: Any, where: object, hint: str) -> T:
    """What a validator of pydantic makes of a file's content. Raises DcclipError with `where`, the
    key and `hint`.
    """
    from pydantic_core import ValidationError

    try:
        return validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        key = ".".join(map(str, first["loc"]))
        # which says more than the value
        value = first["input"]
        told = first["type"] == "value_error"
        got = (
            Message(" (got {!r:.100})", value)
            if isinstance(value, str | int | float) and not told
            else ""
        )
        place = ": ".join(filter(None, (str(where), key)))
        raise DcclipError("{}: {}{}", hint, place, message[:1].lower() + message[1:], got) from None


def json_object(text: str | bytes, where: str, hint: str) -> dict[str, Any]:
    """The JSON object in a text. Raises DcclipError with `where` and `hint` if it is something
    else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DcclipError("{} is not JSON: {}", hint, where, error) from None
    if not isinstance(content, dict):
        raise DcclipError("{} is not a JSON object", hint, where)
    return content
