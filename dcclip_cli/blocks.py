"""Block files of the feature store: keys, named arrays, and a checksum of each row.

A file is a prefix, a header (JSON), tables (keys; the checksums of each array, and the lengths of ragged rows), and the
rows of one array after the other. All but the rows is verified when a block is opened, a row when it is read first.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

FORMAT = 1
_MAGIC = b"dcclip features\n"
_PREFIX = struct.Struct("<16sIIQQ")  # magic, header bytes, CRC-32 of header and tables, table bytes, file bytes


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: `values` (sum of lengths, ...), one row after the other, and `lengths` (N,)."""

    values: np.ndarray
    lengths: np.ndarray

    def padded(self) -> np.ndarray:
        """(N, longest, ...), filled up with 0."""
        columns = np.arange(self.lengths.max(initial=0))
        padded = np.zeros((len(self.lengths), len(columns), *self.values.shape[1:]), self.values.dtype)
        padded[columns < self.lengths[:, None]] = self.values
        return padded


Values = Mapping[str, np.ndarray | Ragged]


class Damaged(Exception):
    """A block that cannot be used, and why."""


@dataclass
class Field:
    """One array of a block: where it begins in the file, how it is cut into rows, and their CRC-32s."""

    dtype: np.dtype
    shape: tuple[int, ...]  # of an entry: a row, or one of a ragged row's
    start: int
    checks: np.ndarray
    ends: array[int] | None  # of ragged rows: how many entries come before each, and in all
    verified: bytearray
    entry_bytes: int

    def span(self, row: int) -> tuple[int, int]:
        """The bytes of a row in the file."""
        first, last = (row, row + 1) if self.ends is None else (self.ends[row], self.ends[row + 1])
        return self.start + first * self.entry_bytes, self.start + last * self.entry_bytes


@dataclass
class Block:
    """All that is known of a block but its rows; `content` is all of it where it is in no file."""

    file: Path | None
    size: int
    rows: int
    seconds: float
    fields: dict[str, Field]
    content: bytes


def pack(pieces: Sequence[tuple[np.ndarray, Values]], seconds: float) -> list[bytes | memoryview]:
    keys = np.concatenate([keys for keys, _ in pieces])
    fields: list[list[Any]] = []
    tables, arrays = [keys.astype("<u8").tobytes()], list[bytes | memoryview]()
    for name in pieces[0][1]:
        parts = [values[name] for _, values in pieces]
        entries = [np.ascontiguousarray(part.values if isinstance(part, Ragged) else part) for part in parts]
        dtype, shape = entries[0].dtype.newbyteorder("<"), entries[0].shape[1:]
        entry_bytes, checks = dtype.itemsize * math.prod(shape), list[int]()
        lengths = [part.lengths if isinstance(part, Ragged) else np.ones(len(part), np.int64) for part in parts]
        for one, its in zip(entries, lengths, strict=True):
            content = one.astype(dtype, copy=False).reshape(-1).view(np.uint8).data
            ends = [end * entry_bytes for end in accumulate(its.tolist(), initial=0)]
            checks += [zlib.crc32(content[first:last]) for first, last in pairwise(ends)]
            arrays.append(content)
        ragged = isinstance(parts[0], Ragged)
        tables.append(np.asarray(checks, "<u4").tobytes())
        if ragged:
            tables.append(np.concatenate(lengths).astype("<u4").tobytes())
        fields.append([name, dtype.str, shape, ragged, sum(map(len, entries))])
    header = json.dumps({"format": FORMAT, "rows": len(keys), "seconds": round(seconds, 3), "fields": fields}).encode()
    table = b"".join(tables)
    size = _PREFIX.size + len(header) + len(table) + sum(map(len, arrays))
    prefix = _PREFIX.pack(_MAGIC, len(header), zlib.crc32(table, zlib.crc32(header)), len(table), size)
    return [prefix, header, table, *arrays]


def parse(stream: BinaryIO, size: int, file: Path | None) -> tuple[Block, np.ndarray]:
    """A block and its keys; the rows are not read. Raises Damaged."""
    prefix = stream.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise Damaged("is not a block of features")
    _, header_bytes, check, table_bytes, whole = _PREFIX.unpack(prefix)
    if size != whole or header_bytes + table_bytes > size:
        raise Damaged("is cut")
    header, table = stream.read(header_bytes), stream.read(table_bytes)
    if zlib.crc32(table, zlib.crc32(header)) != check:
        raise Damaged("is damaged")
    about = json.loads(header)
    if about["format"] != FORMAT:
        raise Damaged(f"has format {about['format']}, and this is dcclip's {FORMAT}")
    rows, start = about["rows"], _PREFIX.size + header_bytes + table_bytes
    keys = np.frombuffer(table, "<u8", 2 * rows).reshape(rows, 2)
    offset, fields = keys.nbytes, dict[str, Field]()
    for name, kind, shape, ragged, entries in about["fields"]:
        checks, ends, dtype = np.frombuffer(table, "<u4", rows, offset), None, np.dtype(kind)
        offset += checks.nbytes
        if ragged:
            ends = array("q", accumulate(np.frombuffer(table, "<u4", rows, offset).tolist(), initial=0))
            offset += 4 * rows
        entry_bytes = dtype.itemsize * math.prod(shape)
        fields[name] = Field(dtype, tuple(shape), start, checks, ends, bytearray(rows), entry_bytes)
        start += entries * entry_bytes
    content = b"" if file else prefix + header + table + stream.read()
    return Block(file, size, rows, about["seconds"], fields, content), keys
