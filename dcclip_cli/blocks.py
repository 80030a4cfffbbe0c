"""Block files of the feature store: keys, named arrays, and a checksum of each row.

A file is a prefix, a header (JSON), tables (keys; the checksums of each array, and the lengths of ragged rows), and the
rows of one array after the other. All but the rows is verified when a block is parsed, a row when it is first read.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

FORMAT = 2
_MAGIC = b"dcclip features\n"
_PREFIX = struct.Struct("<16sIIQQ")  # magic, header bytes, CRC-32 of header and tables, table bytes, file bytes


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: `values` (sum of lengths, ...), one row after the other, and `lengths` (N,)."""

    values: np.ndarray
    lengths: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(N, longest) where the padded rows have entries."""
        return np.arange(self.lengths.max(initial=0)) < self.lengths[:, None]

    def padded(self) -> np.ndarray:
        """(N, longest, ...), padded with 0."""
        padded = np.zeros((*self.mask.shape, *self.values.shape[1:]), self.values.dtype)
        padded[self.mask] = self.values
        return padded


Values = Mapping[str, np.ndarray | Ragged]


def flat(rows: np.ndarray | Ragged) -> np.ndarray:
    """The entries of all rows, one after the other."""
    return rows.values if isinstance(rows, Ragged) else rows


class Damaged(Exception):
    """A block, or another file of dcclip's own, that cannot be used, and why."""


class OtherFormat(Damaged):
    """A file of another version of dcclip."""


@dataclass(frozen=True)
class Array:
    """An array of a block: its name, and the type and shape of an entry, which is a row, or one of a ragged row's."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    ragged: bool

    @property
    def entry_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Block:
    """Where the N rows of a block's K arrays are in it, and their CRC-32s.

    `lengths` are in entries: 1 unless rows are ragged.
    """

    size: int
    seconds: float  # that computing them took
    arrays: tuple[Array, ...]
    keys: np.ndarray  # (N,) S16
    offsets: np.ndarray  # (N, K) int64
    lengths: np.ndarray  # (N, K) uint32
    checks: np.ndarray  # (N, K) uint32


def pack(pieces: Sequence[tuple[np.ndarray, Values]], seconds: float) -> list[bytes | memoryview]:
    """The parts of a block with these rows (keys (N,), and values by name), and the time that computing them took."""
    keys = np.concatenate([keys for keys, _ in pieces])
    tables, arrays, fields = [keys.tobytes()], list[memoryview](), list[list[object]]()
    for name in pieces[0][1]:
        parts = [values[name] for _, values in pieces]
        entries = np.concatenate([flat(part) for part in parts])
        content, entry_bytes = entries.reshape(-1).view(np.uint8).data, entries.itemsize * math.prod(entries.shape[1:])
        ragged = [part.lengths for part in parts if isinstance(part, Ragged)]
        lengths = np.concatenate(ragged) if ragged else np.ones(len(keys), np.int64)
        ends = pairwise(accumulate((lengths * entry_bytes).tolist(), initial=0))
        tables.append(np.asarray([zlib.crc32(content[first:last]) for first, last in ends], "<u4").tobytes())
        if ragged:
            tables.append(lengths.astype("<u4").tobytes())
        arrays.append(content)
        fields.append([name, entries.dtype.str, entries.shape[1:], bool(ragged), len(content)])
    about = {"format": FORMAT, "rows": len(keys), "seconds": round(seconds, 3), "fields": fields}
    header = json.dumps(about).encode()
    table = b"".join(tables)
    size = _PREFIX.size + len(header) + len(table) + sum(map(len, arrays))
    prefix = _PREFIX.pack(_MAGIC, len(header), zlib.crc32(table, zlib.crc32(header)), len(table), size)
    return [prefix, header, table, *arrays]


def parse(source: Path | bytes) -> Block:
    """The block in a file or in memory; its rows are not read. Raises Damaged."""
    with _open(source) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
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
        raise OtherFormat(f"has format {about['format']}, and this is dcclip's {FORMAT}")
    rows, start = about["rows"], _PREFIX.size + header_bytes + table_bytes
    arrays = tuple(Array(name, dtype, tuple(shape), ragged) for name, dtype, shape, ragged, _ in about["fields"])
    keys = np.frombuffer(table, "S16", rows)
    offsets = np.empty((rows, len(arrays)), np.int64)
    lengths, checks = np.ones(offsets.shape, np.uint32), np.empty(offsets.shape, np.uint32)
    place = keys.nbytes
    for number, (array, (*_, array_bytes)) in enumerate(zip(arrays, about["fields"], strict=True)):
        checks[:, number] = np.frombuffer(table, "<u4", rows, place)
        place += 4 * rows
        if array.ragged:
            lengths[:, number] = np.frombuffer(table, "<u4", rows, place)
            place += 4 * rows
        row_bytes = lengths[:, number] * np.int64(array.entry_bytes)
        offsets[:, number] = start + np.cumsum(row_bytes) - row_bytes
        start += array_bytes
    return Block(size, about["seconds"], arrays, keys, offsets, lengths, checks)


def _open(source: Path | bytes) -> io.BytesIO | io.FileIO:
    return io.BytesIO(source) if isinstance(source, bytes) else io.FileIO(source)
