"""Lines and CSV records of text files of any size, of bounded length, readable from any offset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

_CHUNK = 1 << 22


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


def line_cuts(stream: BinaryIO, size: int, number: int = 1) -> Iterator[Cut]:
    """Ranges of `size` lines from the stream's position, found by line ends alone."""
    start = position = stream.tell()
    count, unended = 0, False  # whole lines since `start`; whether the file's last line has no end
    while chunk := stream.read(_CHUNK):
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + 1
        for end in ends[size - count - 1 :: size].tolist():
            yield Cut(start, position + end, number, size)
            start, number = position + end, number + size
        count = (count + len(ends)) % size
        position, unended = position + len(chunk), not chunk.endswith(b"\n")
    if start < position:
        yield Cut(start, position, number, count + unended)


def records(stream: BinaryIO, limit: int, number: int = 1) -> Iterator[Row]:
    """The records of a CSV file from the stream's position: a quoted field may contain line ends.

    Where a quote is not closed within the limit, its line is a record by itself, so that only that line is lost.
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
    """Ranges of `size` records of a CSV file."""
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
