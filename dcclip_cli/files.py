"""Files: atomic writes, locks between processes, checksums, and the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcclip_cli.errors import DcclipError


def cache_folder() -> Path:
    """The folder for data that can be computed again: $DCCLIP_CACHE, else `dcclip` in the user's cache folder."""
    if given := os.environ.get("DCCLIP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcclip"


@contextmanager
def lock(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock named by `file` while the block runs; yields False if another process holds it and `wait` is off.

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


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary path next to `file`, moved to `file` when the block ends, removed if it raises.

    A killed process leaves `file` as it was.
    """
    partial = _partial(file)
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write(file: Path, content: bytes | str) -> None:
    """Write a file under a temporary name and move it into place; text as UTF-8 with LF line ends."""
    with atomic_file(file) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder, removed when the block ends, also by a signal at any moment."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty temporary folder next to `folder` that replaces it when the block ends, removed if it raises."""
    partial = _partial(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        old = partial.with_suffix(".old")
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def link_or_copy(source: Path, target: Path) -> None:
    """Let `target` be another name of the file `source`, or a copy where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


class OpenFile:
    """A file that is read by offset from any process or thread; it is closed when nothing refers to it any more."""

    def __init__(self, file: Path | str) -> None:
        self.descriptor = os.open(file, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(file: Path, content: dict[str, Any], sort_keys: bool = False) -> None:
    """Write an object as indented JSON in UTF-8; what cannot be encoded is replaced."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n"
    file.write_text(text, encoding="utf-8", errors="replace")


def read_json(file: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file. Raises DcclipError with `hint` if the file is missing."""
    if not file.is_file():
        raise DcclipError(f"{file.parent} has no {file.name}", hint)
    return json_object(file.read_bytes(), str(file), "copy the directory again")


def json_object(text: str | bytes, where: str, hint: str) -> dict[str, Any]:
    """The JSON object in a text. Raises DcclipError with `where` and `hint` if it is something else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DcclipError(f"{where} is not JSON: {error}", hint) from None
    if not isinstance(content, dict):
        raise DcclipError(f"{where} is not a JSON object", hint)
    return content
