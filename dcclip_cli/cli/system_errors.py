"""The table from errors of the operating system, and of libraries that pass them on, to `error:` and `hint:` lines."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from dcclip_cli.cli.streams import printable
from dcclip_cli.errors import DcclipError, Message, written_by
from dcclip_cli.files import cache_folder, free_bytes
from dcclip_cli.machine import memory
from dcclip_cli.text import size_in_words

_OTHER_CACHE = Message("set DCCLIP_CACHE to another folder, for the cache")

# Errors with a file: what is wrong with it, and what to do; {elsewhere} is how this command writes somewhere else.
_WITH_FILE: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: (
        Message("{file}: no space left on the disk ({free} free)"),
        Message(
            "free some space, or files if df -i shows too many of them{elsewhere}, then run the same command again"
        ),
    ),
    errno.EDQUOT: (
        Message("{file}: your disk quota is used up"),
        Message("delete files of yours{elsewhere}, then run the same command again"),
    ),
    errno.EROFS: (Message("{file} is on a read-only file system"), Message("write to another one{elsewhere}")),
    errno.EEXIST: (Message("{file} exists already"), Message("move it away{elsewhere}")),
    errno.ENOTDIR: (
        Message("{barrier} is a file, not a folder"),
        Message("check the path: all of it but the last name must be folders"),
    ),
    errno.EISDIR: (Message("{file} is a folder, not a file"), Message("name a file")),
    errno.ENOENT: (
        Message("{file} does not exist"),
        Message("check the path; if another process deleted it, run the command again"),
    ),
    errno.ENAMETOOLONG: (
        Message("{file}: the name is too long"),
        Message("give a shorter one: most systems allow 255 bytes"),
    ),
    errno.ELOOP: (Message("{file}: symbolic links lead in a circle"), Message("look at them with: ls -l")),
}
_OTHER = (
    Message("{file}: {reason}"),
    Message("use an ordinary file on a local disk{elsewhere}; if it is one, check the disk"),
)
_FILES = (Message("too many files are open"), Message("allow more with: ulimit -n 4096"))
_DISK_FULL = (
    Message("no space is left on a disk"),
    Message("look for the full one with df -h, free some space, then run the same command again"),
)
_PROCESSES = (
    Message("the system starts no more processes or threads"),
    Message("close other programs, use fewer threads and workers, or allow more with: ulimit -u"),
)
# Errors of the process as a whole, with or without a file.
_OF_PROCESS: Mapping[int, tuple[str, str]] = {errno.EMFILE: _FILES, errno.ENFILE: _FILES, errno.EAGAIN: _PROCESSES}

_NUMBER = re.compile(
    r"(?:\berrno|\bos error|\bcode:|\berror number)[ :]*(\d+)|(No space left on device)", re.IGNORECASE
)
_PASSED_ON_BY = ("safetensors", "duckdb", "_duckdb", "onnxruntime", "pyarrow")  # modules of such errors
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|problem writing element \d+ to file")  # numpy's tofile
_LINK_LOOP = re.compile(r"Symlink loop from '(.*)'")  # pathlib's resolve
_NO_MEMORY = ("can't allocate memory", "Unable to allocate", "bad alloc", "bad_alloc", "out of memory", "failed to map")
_NO_THREAD = ("can't start new thread", "Resource temporarily unavailable", "pthread_create")
_PARTIAL = re.compile(r"(?<![^/])\.([^/]+)\.\d+-[0-9a-f]{8}\.(?:partial|old)(?![^/])")


def explained(error: BaseException, options: Collection[str] = ()) -> DcclipError | None:
    """What the user can do about an error of the system, or None for one that is not the system's.

    `options` are those of the command: a hint names no other.
    """
    text = _text(error)
    if "Too many open files" in text:
        return DcclipError(*_FILES)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(part in text for part in _NO_MEMORY)
    ):
        return _no_memory(options)
    if isinstance(error, RuntimeError) and any(part in text for part in _NO_THREAD):
        return DcclipError(*_PROCESSES)
    if type(error).__name__ == "PanicException":  # a BaseException, of libraries written in Rust
        what = Message("a library cannot handle the content of a file: {}", (text.splitlines() or [""])[0][:200])
        return DcclipError(what, "copy or download the model again: one of its files is damaged")
    number = _number(error)
    return None if number is None else _sentence(number, _file(error), options)


def _text(error: BaseException) -> str:
    """What an error says; once it has a file's name, str() of an OSError leaves out the rest."""
    return " ".join(map(str, error.args))


def _number(error: BaseException) -> int | None:
    """The operating system's number of an error."""
    if isinstance(error, RuntimeError) and _LINK_LOOP.search(_text(error)):
        return errno.ELOOP
    if isinstance(number := getattr(error, "errno", None), int):
        return number
    passed_on = isinstance(error, OSError | RuntimeError) or type(error).__module__.startswith(_PASSED_ON_BY)
    if passed_on and (found := _NUMBER.search(_text(error))):
        return int(found[1] or errno.ENOSPC)
    return errno.ENOSPC if isinstance(error, OSError) and _SHORT_WRITE.search(_text(error)) else None


def _file(error: BaseException) -> Path | None:
    """The file that an error is about, if it is known: of a temporary one what it is going to be."""
    if isinstance(error, RuntimeError) and (loop := _LINK_LOOP.search(_text(error))):
        return Path(loop[1])
    own = (getattr(error, "filename2", None), getattr(error, "filename", None)) if isinstance(error, OSError) else ()
    file = next((one for one in own if one is not None and not isinstance(one, int)), None) or written_by(error)
    return Path(_PARTIAL.sub(r"\1", os.fsdecode(file))) if file else None


def _sentence(number: int, file: Path | None, options: Collection[str]) -> DcclipError | None:
    if number in _OF_PROCESS:
        return DcclipError(*_OF_PROCESS[number])
    if number == errno.ENOMEM:
        return _no_memory(options)
    if file is None:
        return DcclipError(*_DISK_FULL) if number in (errno.ENOSPC, errno.EDQUOT) else None
    elsewhere = _elsewhere(file, options)
    if number in (errno.EACCES, errno.EPERM):
        return _not_allowed(file, elsewhere)
    what, hint = _WITH_FILE.get(number, _OTHER)
    fields = {
        "file": printable(str(file)),
        "barrier": printable(str(_barrier(file))),
        "free": _free(file) if "{free}" in what else "",
        "elsewhere": Message(", or {}", elsewhere) if elsewhere else "",
        "reason": os.strerror(number),
    }
    if "{free}" not in what and elsewhere == _OTHER_CACHE:
        hint = elsewhere
    return DcclipError(Message(what, **fields), Message(hint, **fields))


def _no_memory(options: Collection[str]) -> DcclipError:
    there = memory()
    free = Message(" ({:.1f} GiB are available)", there.available / 2**30) if there else ""
    smaller = (
        Message(", or make the recipe's batch_size smaller, or split batches with accumulate: auto")
        if "--set" in options
        else ""
    )
    return DcclipError("there is not enough memory{}", "close other programs{}", free, smaller)


def _not_allowed(file: Path, elsewhere: str) -> DcclipError:
    """What keeps this user from reading or writing a file, as far as its permissions tell."""
    for folder in reversed(file.parents):
        if os.path.isdir(folder) and not os.access(folder, os.X_OK):
            return DcclipError("{0}: you may not enter {1}", "allow it with: chmod +x {1}", file, folder)
    if os.path.exists(file) and not os.access(file, os.R_OK):
        return DcclipError("{0} may not be read", "allow it with: chmod {1} {0}", file, _readable(file))
    blocked = file if os.path.exists(file) and not os.access(file, os.W_OK) else file.parent
    there = (
        Message("{} may not be written", file)
        if blocked == file
        else Message("{}: nothing may be written in {}", file, blocked)
    )
    allow = Message("allow it with: chmod +w {}", blocked)
    return DcclipError(there, Message("{}, or {}", elsewhere, allow) if elsewhere else allow)


def _readable(file: Path) -> str:
    return "+rx" if file.is_dir() else "+r"


def _elsewhere(file: Path, options: Collection[str]) -> str:
    """How the command writes somewhere else, if it can."""
    cache = cache_folder()
    if file.is_relative_to(cache) or cache.is_relative_to(file):
        return _OTHER_CACHE
    for option in ("--out", "--html"):
        if option in options:
            return Message("write elsewhere with {}", option)
    return ""


def _barrier(file: Path) -> Path:
    """The first part of a path that exists and is no folder."""
    return next(
        (part for part in (*reversed(file.parents), file) if os.path.exists(part) and not os.path.isdir(part)), file
    )


def _free(file: Path) -> str:
    """The free space where a file is to be written, as `12.5 GB`."""
    return size_in_words(free_bytes(file))
