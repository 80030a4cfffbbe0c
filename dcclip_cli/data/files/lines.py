"""Where do the rows of a text file begin, and how are they read from anywhere in it, however long they are?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

_CHUNK = 1 << 22


class Row(NamedTuple):
    """A row with the number of the line it begins on; `content` is None where it is longer than the limit."""

    number: int
    start: int
    content: bytes | None


class Cut(NamedTuple):
    """A run of rows: the offset of the first, the offset behind the last, the first's line number, how many lines."""

    start: int
    end: int
    number: int
    lines: int


def lines(stream: BinaryIO, limit: int, number: int = 1) -> Iterator[Row]:
    """The lines from where the stream stands, with their line ends; one over the limit is passed over unread."""
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


def line_cuts(stream: BinaryIO, size: int, number: int = 1) -> Iterator[Cut]:
    """The lines from where the stream stands, `size` at a time, without looking at any of them."""
    start = position = stream.tell()
    held, unended = 0, False  # whole lines since `start`; whether the file's last line has no end
    while chunk := stream.read(_CHUNK):
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + 1
        for end in ends[size - held - 1 :: size].tolist():
            yield Cut(start, position + end, number, size)
            start, number = position + end, number + size
        held = (held + len(ends)) % size
        position, unended = position + len(chunk), not chunk.endswith(b"\n")
    if start < position:
        yield Cut(start, position, number, held + unended)


def records(stream: BinaryIO, limit: int, number: int = 1) -> Iterator[Row]:
    """The records of a CSV file from where the stream stands: a quoted field may hold line ends.

    Where a quote is never closed within the limit, the line it stands on is given by itself, so that only it is lost.
    """
    start = stream.tell()
    while line := stream.readline(limit + 1):
        first, count, inside = len(line), line.count(b"\n"), _open_after(line, False)
        parts, total = [line], first
        while inside and total <= limit and (line := stream.readline(limit + 1 - total)):
            parts.append(line)
            total += len(line)
            count += line.count(b"\n")
            inside = _open_after(line, True)
        if total <= limit and not inside:
            yield Row(number, start, b"".join(parts))
            start, number = start + total, number + count
            continue
        end = start + first
        stream.seek(end)
        if first > limit:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
                end += len(line)
        yield Row(number, start, None if first > limit else parts[0])
        start, number = end, number + 1


def record_cuts(stream: BinaryIO, size: int, limit: int, number: int = 1) -> Iterator[Cut]:
    """The records of a CSV file, `size` at a time."""
    start, first, count = stream.tell(), number, 0
    for row in records(stream, limit, number):
        if count == size:
            yield Cut(start, row.start, first, count)
            start, first, count = row.start, row.number, 0
        count += 1
    if count:
        yield Cut(start, stream.seek(0, 2), first, count)


def _open_after(line: bytes, inside: bool) -> bool:
    """Whether a quoted field is still open at the line's end; a quote opens a field only as its first character."""
    if b'"' not in line:
        return inside
    at = 0
    while True:
        if not inside and line[at : at + 1] == b'"':
            inside, at = True, at + 1
        if inside:
            while (at := line.find(b'"', at)) >= 0 and line[at + 1 : at + 2] == b'"':
                at += 2
            if at < 0:
                return True
            inside = False
        at = line.find(b",", at) + 1
        if not at:
            return False
