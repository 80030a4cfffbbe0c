"""Bounded reading of third-party files: each size is limited, no path leaves its folder, every fault has a reason."""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_IMAGE_BYTES = 64_000_000
MAX_TEXT_BYTES = 1_000_000  # of a row in a table, of a caption file or a record next to an image; captions are short
MAX_DEPTH = 32  # of lists in lists in metadata
# Suffixes of image files. Those of formats that no recipe keeps are read as well, so that their drop is counted.
ALL_IMAGE_SUFFIXES = (
    *IMAGE_SUFFIXES,
    *(".jfif", ".jpe", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".avif", ".heic", ".jp2", ".ico"),
)
_CHUNK = 1 << 22  # bytes of a text file that are read at once
_OPENED, _QUOTED = re.compile(rb'(?:^|,)"'), re.compile(rb'(?:^|,)"[^"]*+(?:""[^"]*+)*+"[^,]*')  # fields of CSV
_MAX_HEADER_BYTES = 1_000_000  # of an extended header; a long name needs a few hundred
_END = bytes(tarfile.BLOCKSIZE)
_REGULAR, _EXTENDED = tarfile.REGTYPE[0], tarfile.XHDTYPE[0]
_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # mode 644, time 0, owner 0 without a name
_SIZE, _SUM = slice(124, 135), slice(148, 155)  # the fields that differ, after the name
_REST = sum(_HEADER[:124] + _HEADER[135:148] + _HEADER[156:]) + 8 * ord(" ")  # the checksum without them
# Records of an extended header that change neither a member's name nor its bytes; webdataset and img2dataset write
# `mtime` in front of every member.
_HARMLESS = frozenset((b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment"))


@dataclass(frozen=True)
class Drop:
    """Why something was dropped: `reason` is one of a few fixed words to count by, `detail` explains it to a person."""

    reason: str
    detail: str = ""


class Fault(Exception):
    """Raised for one candidate that cannot be read; its `drop` says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.drop = Drop(reason, detail)


class Folder:
    """Reads files of bounded size, only from inside one folder unless `allow_outside`."""

    def __init__(self, path: Path, allow_outside: bool) -> None:
        self.path = path
        self._inside = None if allow_outside else path.resolve()

    def read(self, path: Path, limit: int, what: str) -> bytes:
        """A file's bytes. Faults: `WHAT-outside`, `WHAT-missing`, or `WHAT-bytes` where there are more than `limit`."""
        try:
            name = os.path.relpath(path, self.path)
            if self._inside and not path.resolve().is_relative_to(self._inside):
                raise Fault(f"{what}-outside", f"{name} is outside the source's folder (allow_outside: false)")
            if not path.is_file():
                raise Fault(f"{what}-missing", f"{name} is not a file")
            with path.open("rb") as stream:
                content = stream.read(limit + 1)
        except (OSError, ValueError, RuntimeError) as error:  # NUL in the name, links in a loop
            cause = getattr(error, "strerror", None) or error
            raise Fault(f"{what}-missing", f"{str(path)[:200]}: {cause}") from None
        if len(content) > limit:
            raise Fault(f"{what}-bytes", f"{name} has more than {limit:,} bytes")
        return content


def from_base64(text: Any) -> bytes:
    """The bytes of a text in base64, standard or URL-safe alphabet. Faults: `image-base64`, `image-bytes`."""
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    if not isinstance(text, bytes):
        raise Fault("image-base64", "not a text")
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise Fault("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
    # cn-clip reads its files in the URL-safe alphabet, which it describes as the usual one; padding may be left out.
    bare = text.strip().rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
    except binascii.Error as error:
        raise Fault("image-base64", f"{error}: starts with {text[:24]!r}") from None


def texts_of(value: Any, where: str) -> list[str]:
    """Captions given as a text, a list of texts or None. Faults: `captions-unreadable`, `captions-bytes`."""
    texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
    texts = [text for text in texts if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise Fault("captions-unreadable", f"{where} has a caption that is not text")
    if sum(map(len, texts)) > MAX_TEXT_BYTES:
        raise Fault("captions-bytes", f"{where} has captions of more than {MAX_TEXT_BYTES:,} characters")
    return texts


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON can represent it: bytes and NaN become null, objects of other types become text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH or isinstance(value, bytes | bytearray | memoryview):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    return str(value)


class Member(NamedTuple):
    """A file in a tar: the offset of its bytes, or the fault that makes them unreadable."""

    name: str
    offset: int
    size: int
    fault: Drop | None = None


def tar_members(file: Path) -> Iterator[Member]:
    """The files and links in a tar, in order, from its headers alone; where it breaks off, the last has the fault."""
    with file.open("rb") as stream:
        yield from members_of(stream, os.path.getsize(file))


def members_of(stream: IO[bytes], size: int) -> Iterator[Member]:
    """Like `tar_members`, of an open file of `size` bytes."""
    at = yield from _plain_members(stream, size)
    if at is None:
        return
    stream.seek(at)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Bounded(stream)), mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else every header stays in memory
                at = archive.offset  # after the last member that could be read
                if member.size < 0:  # which an extended header may say
                    raise tarfile.ReadError(f"a member of {member.size:,} bytes")
                if member.offset_data + (member.size if member.isreg() else 0) > size:
                    yield Member(member.name, member.offset_data, member.size, _cut(size))
                    return
                if member.issym() or member.islnk():
                    fault = Drop("image-outside", f"a link to {member.linkname[:200]!r}; links are not followed")
                    yield Member(member.name, member.offset_data, 0, fault)
                elif member.isreg() and not member.issparse():
                    yield Member(member.name, member.offset_data, member.size)
    # What tarfile raises for nonsense in a header. RecursionError: long names of long names.
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
        what = f"broken after {at:,} bytes: {error}" if at else f"not a tar file: {error}"
        yield Member("", at, 0, Drop("tar-unreadable", what))
        return
    # tarfile treats an unreadable header as the end.
    stream.seek(at)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        yield Member("", at, 0, _cut(size))
    elif block.strip(b"\0"):
        yield Member("", at, 0, Drop("tar-unreadable", f"no header where one should be, at byte {at:,}"))


def _plain_members(stream: IO[bytes], size: int) -> Generator[Member, None, int | None]:
    """The members that are plain files, up to the first other one, or damage, whose offset is returned.

    Five times as fast as tarfile, which judges the rest; returns None at the end of the tar.
    """
    at = start = 0  # of a member, and of the extended header before it
    extended: str | None = None  # the name in that, "" where it has none
    while True:
        stream.seek(at)
        header = stream.read(tarfile.BLOCKSIZE)
        if header == _END and extended is None:
            return None
        try:
            kind, name, length = _parsed(header)
            at += tarfile.BLOCKSIZE
            end = at + length + -length % tarfile.BLOCKSIZE
            if kind == _EXTENDED and extended is None and length <= _MAX_HEADER_BYTES:
                extended = _name_in(stream.read(length))
            elif kind == _REGULAR and end <= size:
                yield Member(extended or name, at, length)
                extended = None
            else:
                return start
        except ValueError:
            return start
        at = end
        if extended is None:
            start = at


def tar_header(name: str, size: int) -> bytes:
    """The header of a file in a tar, in a tenth of the time of tarfile, which writes those of other names."""
    if len(name) > tarfile.LENGTH_NAME or not name.isascii():
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf()
    header, written, digits = bytearray(_HEADER), name.encode(), b"%011o" % size
    header[: len(written)] = written
    header[_SIZE] = digits
    header[_SUM] = b"%06o\0" % (_REST + sum(written) + sum(digits))
    return bytes(header)


def _parsed(header: bytes) -> tuple[int, str, int]:
    """Type, name and size of a member. Raises ValueError for what is not the plain header of a file."""
    size = int(header[124:136].split(b"\0", 1)[0].strip() or b"0", 8)
    checksum = int(header[148:156].split(b"\0", 1)[0].strip() or b"0", 8)
    # Adler-32 is 1 + the sum of the bytes modulo 65,521; the checksum counts its own field as eight spaces.
    total = (zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF) + 255
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    if len(header) < tarfile.BLOCKSIZE or size < 0 or (total - checksum) % 65_521 or header[345] or name.endswith("/"):
        raise ValueError
    return header[156] or _REGULAR, name, size


def _name_in(records: bytes) -> str:
    """The name in an extended header, or "". Raises ValueError where it has anything else of importance."""
    name = b""
    while records:
        digits = records.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record, records = records[:length], records[length:]
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        if key == b"path":
            name = value
        elif key not in _HARMLESS or not record.endswith(b"\n"):
            raise ValueError
    return name.decode()


def _cut(size: int) -> Drop:
    return Drop("tar-cut", f"the file ends after {size:,} bytes, before the tar's end mark")


class _Bounded:
    """A file of which at most one header is read at once: sizes in a hostile tar are lies."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._stream.read(size)


# ---- lines and CSV records of files of any size, of bounded length, readable from any offset


class Row(NamedTuple):
    """A row, the number of the line that it begins on, its offset; `content` is None where it exceeds the limit."""

    number: int
    start: int
    content: bytes | None


class Cut(NamedTuple):
    """A range of rows: the offset of the first and of the end, the line number of the first, the number of rows."""

    start: int
    end: int
    number: int
    lines: int


def lines(stream: BinaryIO, limit: int, number: int = 1) -> Iterator[Row]:
    """The lines from the stream's position, with their line ends; one over the limit is skipped."""
    start = stream.tell()
    while line := stream.readline(limit + 1):
        end = start + len(line)
        if len(line) <= limit:
            yield Row(number, start, line)
        else:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
                end += len(line)
            yield Row(number, start, None)
        start, number = end, number + 1


def records(stream: BinaryIO, limit: int, number: int = 1) -> Iterator[Row]:
    """The records of a CSV file from the stream's position: a quoted field may contain line ends.

    Where a quote is not closed within the limit, its line is a record by itself, so that only that line is lost.
    """
    start = stream.tell()
    while line := stream.readline(limit + 1):
        parts, total, inside = [line], len(line), _open_after(line, False)
        while inside and total <= limit and (line := stream.readline(limit + 1 - total)):
            parts.append(line)
            total, inside = total + len(line), _open_after(line, True)
        if inside or total > limit:
            stream.seek(start)
            yield next(lines(stream, limit, number))
        else:
            yield Row(number, start, b"".join(parts))
        start, number = stream.tell(), number + (1 if inside or total > limit else len(parts))


def cuts(stream: BinaryIO, rows: Iterator[Row], size: int) -> Iterator[Cut]:
    """Ranges of `size` rows: lines or records of the stream."""
    start = number = count = 0
    for row in rows:
        if count == size:
            yield Cut(start, row.start, number, count)
            count = 0
        if not count:
            start, number = row.start, row.number
        count += 1
    if count:
        yield Cut(start, stream.seek(0, 2), number, count)


def _open_after(line: bytes, inside: bool) -> bool:
    """Whether a quoted field is still open at the line's end; a quote opens a field only as its first character."""
    if b'"' not in line:
        return inside
    return bool(_OPENED.search(_QUOTED.sub(b",", b'"' + line if inside else line)))
