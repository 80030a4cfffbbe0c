"""Bounded reading of third-party files: each size is limited, no path leaves its folder, every
fault has a reason.
"""

import base64
import binascii
import math
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl", ".ndjson")  # of text
MAX_IMAGE_BYTES = 64_000_000
# of a row in a table, of a caption file or a record next to an image; captions are short
MAX_TEXT_BYTES = 1_000_000
MAX_DEPTH = 32  # of lists in lists in metadata
# Suffixes of image files. Those of formats that no recipe keeps are read as well, so that their
# drop is counted.
ALL_IMAGE_SUFFIXES = (
    *IMAGE_SUFFIXES,
    *(".jfif", ".jpe", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".avif", ".heic", ".jp2", ".ico"),
)
_CHUNK = 1 << 22  # bytes of a text file that are read at once
# fields of CSV
_OPENED = re.compile(rb'(?:^|,)"')
_QUOTED = re.compile(rb'(?:^|,)"[^"]*+(?:""[^"]*+)*+"[^,]*')
_MAX_HEADER_BYTES = 1_000_000  # of an extended header; a long name needs a few hundred
_END = bytes(tarfile.BLOCKSIZE)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
_WITHOUT_BYTES = (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # mode 644, time 0, owner 0 without a name
# the fields that differ, after the name
_SIZE = slice(124, 135)
_SUM = slice(148, 155)
_REST = sum(_HEADER[:124] + _HEADER[135:148] + _HEADER[156:]) + 8 * ord(
    " "
)  # the checksum without them


@dataclass(frozen=True)
class Drop:
    """Why something was dropped: `reason` is one of a few fixed words to count by, `detail`
    explains it to a person.
    """

    reason: str
    detail: str = ""


class Fault(Exception):
    """Raised for one candidate that cannot be read; its `drop` says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.drop = Drop(reason, detail)


class Folder:
    """Reads files of bounded size, only from inside one folder unless `allow_outside`."""

    def __init__(self, path: Path, allow_outside: bool = False) -> None:
        self.path = path
        self._inside = None if allow_outside else path.resolve()

    def read(self, path: Path, limit: int, what: str) -> bytes:
        """A file's bytes. Faults: `WHAT-outside`, `WHAT-missing`, or `WHAT-bytes` where there are
        more than `limit`.
        """
        try:
            name = os.path.relpath(path, self.path)
            if self._inside and not path.resolve().is_relative_to(self._inside):
                raise Fault(f"{what}-outside", f"{name} is outside the source's folder")
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
    """The bytes of a text in base64, standard or URL-safe alphabet. Faults: `image-base64`,
    `image-bytes`.
    """
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    if not isinstance(text, bytes):
        raise Fault("image-base64", "not a text")
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise Fault("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
    # cn-clip reads its files in the URL-safe alphabet, which it describes as the usual one;
    # padding may be left out.
    bare = text.strip().rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
    except binascii.Error as error:
        raise Fault("image-base64", f"{error}: starts with {text[:24]!r}") from None


def texts_of(value: Any, where: str) -> list[str]:
    """Captions given as a text, a list of texts or None. Faults: `captions-unreadable`,
    `captions-bytes`.
    """
    texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
    texts = [text for text in texts if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise Fault("captions-unreadable", f"{where} has a caption that is not text")
    if sum(map(len, texts)) > MAX_TEXT_BYTES:
        raise Fault(
            "captions-bytes", f"{where} has captions of more than {MAX_TEXT_BYTES:,} characters"
        )
    return texts


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON can represent it: bytes and NaN become null, objects of other types become
    text.
    """
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
    """The files and links in a tar, in order, from its headers alone; where it breaks off, the
    last has the fault.
    """
    with file.open("rb") as stream:
        yield from members_of(stream, os.path.getsize(file))


def members_of(stream: IO[bytes], size: int) -> Iterator[Member]:
    """Like `tar_members`, of an open file of `size` bytes. Ustar, GNU and pax, five times as fast
    as tarfile.
    """
    start = at = 0  # of a member, and of the extended headers before it
    # what these say of it
    named = ""
    sized = None
    while True:
        stream.seek(at)
        header = stream.read(tarfile.BLOCKSIZE)
        if header == _END:
            return
        if start and len(header) < tarfile.BLOCKSIZE:
            yield Member("", at, 0, cut_off(size))
            return
        try:
            kind, name, length = _parsed(header)
            at += tarfile.BLOCKSIZE
            if kind in _EXTENDED:
                if length > _MAX_HEADER_BYTES:  # sizes in a hostile tar are lies
                    raise ValueError(f"a header of {length:,} bytes")
                named, sized = _extended(kind, stream.read(length), named, sized)
                at += length + -length % tarfile.BLOCKSIZE
                continue
        except ValueError as error:
            detail = (
                f"broken after {start:,} bytes: {error}" if start else f"not a tar file: {error}"
            )
            yield Member("", start, 0, Drop("tar-unreadable", detail))
            return
        name = named or name
        length = length if sized is None else sized
        named = ""
        sized = None
        if kind in _LINKS:
            fault = Drop("image-outside", f"{name[:200]!r} is a link; links are not followed")
            yield Member(name, at, 0, fault)
        elif kind not in _WITHOUT_BYTES:
            if at + length > size:
                yield Member(name, at, length, cut_off(size))
                return
            if kind in _REGULAR and not (kind == tarfile.AREGTYPE and name.endswith("/")):
                yield Member(name, at, length)
            at += length + -length % tarfile.BLOCKSIZE
        start = at


def tar_header(name: str, size: int) -> bytes:
    """The header of a file in a tar, in a tenth of the time of tarfile, which writes those of
    other names.
    """
    if len(name) > tarfile.LENGTH_NAME or not name.isascii():
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf()
    header = bytearray(_HEADER)
    written = name.encode()
    digits = b"%011o" % size
    header[: len(written)] = written
    header[_SIZE] = digits
    header[_SUM] = b"%06o\0" % (_REST + sum(written) + sum(digits))
    return bytes(header)


def _parsed(header: bytes) -> tuple[bytes, str, int]:
    """Type, name and size of a member. Raises ValueError for what is no header."""
    if len(header) < tarfile.BLOCKSIZE:
        raise ValueError("it is too short")
    # Adler-32 is 1 + the sum of the bytes modulo 65,521; the checksum counts its own field as
    # eight spaces.
    total = (zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF) + 255
    if (total - _number(header[148:156])) % 65_521:
        raise ValueError("a wrong checksum")
    kind = header[156:157]
    name = _string(header[:100])
    if kind == tarfile.GNUTYPE_SPARSE:
        raise ValueError("a sparse file")
    if header[345] and kind not in _EXTENDED:
        name = f"{_string(header[345:500])}/{name}"
    return kind, name, _number(header[124:136])


def _string(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """A number in octal digits, or of GNU's with more than eight of them in base 256. Raises
    ValueError.
    """
    number = (
        int.from_bytes(field[1:])
        if field[0] == 0x80
        else int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    )
    if number < 0:
        raise ValueError(f"a size of {number:,} bytes")
    return number


def _extended(kind: bytes, content: bytes, name: str, size: int | None) -> tuple[str, int | None]:
    """Name and size of the next member, as an extended header changes them. Raises ValueError."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return _string(content), size
    while kind == tarfile.XHDTYPE and content:
        digits = content.partition(b" ")[0]
        length = int(digits)
        record = content[:length]
        content = content[length:]
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        if length <= len(digits) or not record.endswith(b"\n") or key.startswith(b"GNU.sparse"):
            raise ValueError("an impossible extended header")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            size = int(value)
            if size < 0:
                raise ValueError(f"a size of {size:,} bytes")
    return name, size


def cut_off(size: int) -> Drop:
    return Drop("tar-cut", f"the file ends after {size:,} bytes, before the tar's end mark")


# ---- lines and CSV records of files of any size, of bounded length, readable from any offset


class Row(NamedTuple):
    """A row, the number of the line that it begins on, its offset; `content` is None where it
    exceeds the limit.
    """

    number: int
    start: int
    content: bytes | None


class Cut(NamedTuple):
    """A range of rows: the offset of the first and of the end, the line number of the first, the
    number of rows.
    """

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
        start = end
        number = number + 1


def records(stream: BinaryIO, limit: int, number: int = 1) -> Iterator[Row]:
    """The records of a CSV file from the stream's position: a quoted field may contain line ends.

    Where a quote is not closed within the limit, its line is a record by itself, so that only that
    line is lost.
    """
    start = stream.tell()
    while line := stream.readline(limit + 1):
        parts = [line]
        total = len(line)
        inside = _open_after(line, False)
        while inside and total <= limit and (line := stream.readline(limit + 1 - total)):
            parts.append(line)
            total = total + len(line)
            inside = _open_after(line, True)
        if inside or total > limit:
            stream.seek(start)
            yield next(lines(stream, limit, number))
        else:
            yield Row(number, start, b"".join(parts))
        start = stream.tell()
        number = number + (1 if inside or total > limit else len(parts))


def cuts(stream: BinaryIO, rows: Iterator[Row], size: int) -> Iterator[Cut]:
    """Ranges of `size` rows: lines or records of the stream."""
    start = number = count = 0
    for row in rows:
        if count == size:
            yield Cut(start, row.start, number, count)
            count = 0
        if not count:
            start = row.start
            number = row.number
        count += 1
    if count:
        yield Cut(start, stream.seek(0, 2), number, count)


def _open_after(line: bytes, inside: bool) -> bool:
    """Whether a quoted field is still open at the line's end; a quote opens a field only as its
    first character.
    """
    if b'"' not in line:
        return inside
    return bool(_OPENED.search(_QUOTED.sub(b",", b'"' + line if inside else line)))
