"""JSON records with sizes and SHA-256 of the files next to them and of themselves, checked when these are read.

`sha256` in a record is that of its own text with zeros in the place of its digits, so that no bit of it can change
unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import atomic_write, file_sha256, json_object, remove

OWN, FILES = "sha256", "files"
USERS_FILES = ("README.md",)  # the user may edit the model card
_ZEROS = "0" * 64
_SMALL_BYTES = 1 << 20  # files up to this size are checked before anything is loaded


@dataclass(frozen=True)
class Record:
    """The content of a record, with the files that it lists, which are none in formats without checksums."""

    file: Path
    content: dict[str, Any]
    hint: str  # what the user can do about a file that differs

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each listed file by its name, `/` between the parts."""
        return {name: entry[OWN] for name, entry in self._files.items()}

    @property
    def _files(self) -> dict[str, dict[str, Any]]:
        files: dict[str, dict[str, Any]] = self.content.get(FILES, {})
        return files

    def check_sizes(self) -> None:
        """Raise DcclipError if a listed file is missing or has another size."""
        for name, entry in self._files.items():
            file = self.file.parent / name
            if not file.is_file():
                what = (
                    Message("{file} is a folder", file=file)
                    if file.is_dir()
                    else Message("{file} is missing, which {name} lists", file=file, name=self.file.name)
                )
                raise DcclipError(what, self.hint)
            if (size := file.stat().st_size) != entry["bytes"]:
                cut = Message("cut short") if size < entry["bytes"] else Message("too long")
                raise DcclipError(
                    Message(
                        "{file} is {cut}: {size:,} bytes instead of {expected:,}",
                        file=file,
                        cut=cut,
                        size=size,
                        expected=entry["bytes"],
                    ),
                    self.hint,
                )

    def check(self) -> None:
        """Raise DcclipError if a listed file is missing, or has another size or content."""
        self.check_sizes()
        self._check_contents(self._files)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """`check` in a thread while the block loads the files, small ones before it.

        Where a file differs, that is the error, whatever the block raises.
        """
        self.check_sizes()
        large = [name for name, entry in self._files.items() if entry["bytes"] > _SMALL_BYTES]
        self._check_contents(self._files.keys() - set(large))
        with ThreadPoolExecutor(1, "checksums") as pool:
            checked = pool.submit(self._check_contents, large)
            try:
                yield
            finally:
                checked.result()

    def _check_contents(self, names: Collection[str]) -> None:
        for name in names:
            file = self.file.parent / name
            if file_sha256(file) != self._files[name][OWN]:
                what = Message(
                    "{file} is damaged or was changed: its SHA-256 is not the one in {name}",
                    file=file,
                    name=self.file.name,
                )
                raise DcclipError(what, self.hint)


def write_record(file: Path, content: Mapping[str, Any], sort_keys: bool = False, alone: bool = False) -> None:
    """Write a JSON object, with the checksums of all files in its folder and below it but those of the user.

    `alone`: of itself only.
    """
    folder, unlisted = file.parent, {file, *(file.parent / name for name in USERS_FILES)}
    files = {
        one.relative_to(folder).as_posix(): {"bytes": one.stat().st_size, OWN: file_sha256(one)}
        for one in sorted(() if alone else folder.rglob("*"))
        if one.is_file() and one not in unlisted
    }
    kept = dict(sorted(content.items())) if sort_keys else content
    atomic_write(file, record_text({**kept, FILES: files}))


def record_text(content: Mapping[str, Any]) -> bytes:
    """The text of a record, with its own checksum; `content` has the `files` that it lists."""
    listed = {FILES: content.get(FILES, {}), OWN: _ZEROS}
    whole = {key: value for key, value in content.items() if key not in listed} | listed
    text = json.dumps(whole, indent=2, ensure_ascii=False).encode(errors="replace") + b"\n"
    head, zeros, tail = text.rpartition(_ZEROS.encode())
    assert zeros
    return head + hashlib.sha256(text).hexdigest().encode() + tail


def read_record(file: Path, since: int, hint: str) -> Record:
    """The record in a file, as it was written; only those of a format from `since` on have checksums.

    Raises DcclipError if it is missing, or not as it was written.
    """
    if not file.is_file():
        raise DcclipError(
            Message("{file} is a folder", file=file)
            if file.is_dir()
            else Message("{parent} has no {name}", parent=file.parent, name=file.name),
            hint,
        )
    text = file.read_bytes()
    content = json_object(text, str(file), hint)
    number, own = content.get("format"), content.get(OWN)
    if not content.keys() & {OWN, FILES} and (not isinstance(number, int) or number < since):
        return Record(file, content, hint)
    head, found, tail = text.rpartition(own.encode(errors="replace") if isinstance(own, str) and own else b"\0")
    if not found or hashlib.sha256(head + _ZEROS.encode() + tail).hexdigest() != own:
        raise DcclipError(Message("{file} is damaged or was edited: it is not as it was written", file=file), hint)
    if not _is_a_listing(content.get(FILES)):
        raise DcclipError(
            Message("{file}: {files} does not list bytes and {own} of files", file=file, files=FILES, own=OWN), hint
        )
    return Record(file, content, hint)


def cached_record(file: Path, number: int, say: Callable[[str], None]) -> Record | None:
    """The record in a file that can be made again; None where there is none of the format `number`.

    One of another format, or that is damaged as its files may be, is removed, after a warning to `say`.
    """
    if not os.path.lexists(file):
        return None
    try:
        if not file.is_file():
            raise DcclipError("{file} is not a file", "", file=file)
        record = read_record(file, number, "")
        if (found := record.content.get("format")) != number:
            raise DcclipError(
                "{file} has format {found}, and this is dcclip's {number}", "", file=file, found=found, number=number
            )
        record.check()
    except (DcclipError, OSError) as error:
        what = (
            error.what
            if isinstance(error, DcclipError)
            else Message("{file} cannot be read: {strerror}", file=file, strerror=error.strerror)
        )
        say(Message("warning: {what}: it is made again", what=what))
        remove(file)
        return None
    return record


def _is_a_listing(files: Any) -> bool:
    """Whether it is one of sizes and digests, of files inside the folder."""
    return isinstance(files, dict) and all(
        isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and re.fullmatch("[0-9a-f]{64}", str(entry.get(OWN)))
        and not PurePosixPath(name).is_absolute()
        and ".." not in PurePosixPath(name).parts
        for name, entry in files.items()
    )
