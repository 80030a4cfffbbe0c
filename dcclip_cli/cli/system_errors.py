"""Errors of the operating system, and of libraries that pass them on, as `error:` and `hint:`
lines.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dcclip_cli.core.errors import DcclipError, Message, written_by
from dcclip_cli.core.files import cache_folder

_PERMISSION = DcclipError(
    "no permission to read or write {file}",
    "change the permissions of the file or its folders (see: ls -ld)",
)
_WITH_FILE: Mapping[int, DcclipError] = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOSPC: DcclipError(
        "{file}: the disk is full",
        "free some disk space, or some inodes (see: df -i); then run the same command again",
    ),
    errno.ENOENT: DcclipError(
        "{file} does not exist",
        "check the path; if another process deleted it, run the command again",
    ),
}
_OTHER = DcclipError("{file}: {reason}", "check the path, and the disk for errors")
_DISK_FULL = DcclipError(
    "a disk is full",
    "find the full disk with df -h, free some space, then run the same command again",
)
_FILES = DcclipError("too many files are open", "raise the limit with: ulimit -n 4096")
# Errors of the process as a whole, with or without a file.
_OF_PROCESS: Mapping[int, DcclipError] = {
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: DcclipError(
        "the limit of processes or threads is reached",
        "close other programs, use fewer threads and workers, or raise the limit with ulimit -u",
    ),
    errno.ENOMEM: DcclipError(
        "not enough memory", "close other programs, or use smaller batches (batch_size)"
    ),
}

# What libraries say of errors that they pass on, by the system's number.
_SAID = {
    errno.EMFILE: "Too many open files",
    errno.ENOMEM: "can't allocate memory|Unable to allocate|bad[ _]alloc|out of memory|failed to map",
    errno.EAGAIN: "can't start new thread|Resource temporarily unavailable|pthread_create",
    errno.ENOSPC: r"No space left on device|\d+ requested and \d+ written|problem writing element "
    r"\d+ to file",
    errno.ELOOP: "Symlink loop",
}
_NUMBER = re.compile(r"(?:\berrno|\bos error|\bcode:|\berror number)[ :]*(\d+)", re.IGNORECASE)
_PASSED_ON_BY = (
    "safetensors",
    "duckdb",
    "_duckdb",
    "onnxruntime",
    "pyarrow",
)  # modules of such errors
_LINK_LOOP = re.compile(r"Symlink loop from '(.*)'")  # pathlib's resolve
_PARTIAL = re.compile(r"(?<![^/])\.([^/]+)\.\d+-[0-9a-f]{8,16}\.(?:partial|old)(?![^/])")


def explained(error: BaseException) -> DcclipError | None:
    """What the user can do about an error of the system, or None for one that is not the system's."""
    text = " ".join(
        map(str, error.args)
    )  # str() leaves out the rest once an OSError has a file's name
    if type(error).__name__ == "PanicException":  # a BaseException, of libraries written in Rust
        problem = Message(
            "a native library could not parse a file: {}", (text.splitlines() or [""])[0][:200]
        )
        return DcclipError(problem, "copy or download the model again: one of its files is damaged")
    number = _number(error, text)
    if number is None:
        return None
    if number in _OF_PROCESS:
        return _OF_PROCESS[number]

    if loop := _LINK_LOOP.search(text):
        path = loop[1]
    else:
        names = (
            getattr(error, name, None)
            for name in ("filename2", "filename")
            if isinstance(error, OSError)
        )
        path = next(
            (name for name in names if name is not None and not isinstance(name, int)), None
        )
        path = path or written_by(error)
    if not path:
        return _DISK_FULL if number in (errno.ENOSPC, errno.EDQUOT) else None

    file = Path(_PARTIAL.sub(r"\1", os.fsdecode(path)))  # not a temporary file's name
    template = _WITH_FILE.get(number, _OTHER)
    fields = {
        "file": str(file).replace("\n", "\\n"),  # each line of a text is an error of its own
        "reason": os.strerror(number),
    }
    hint = template.hint
    if file.is_relative_to(cache_folder()):
        hint = Message("set DCCLIP_CACHE to another folder")
    return DcclipError(Message(template.what, **fields), hint)


def _number(error: BaseException, text: str) -> int | None:
    if isinstance(number := getattr(error, "errno", None), int):
        return number
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError | RuntimeError | ImportError) or type(error).__module__.startswith(
        _PASSED_ON_BY
    ):
        for number, pattern in _SAID.items():
            if re.search(pattern, text):
                return number
        if match := _NUMBER.search(text):
            return int(match[1])
    return None
