"""Index of a feature store: the sorted keys of blocks with the same arrays, and where their rows are.

An index of many rows is a file next to the blocks, memory-mapped, so that its pages are shared by all processes and a
block need not be opened to look something up. Its tables need no checksum: a row that is read has to match its own.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.blocks import Array, Block, Damaged
from dcclip_cli.files import atomic_file

SUFFIX = ".index"
FORMAT = 1
_MAGIC = b"dcclip index of rows\n"
_PREFIX = struct.Struct("<21sII")  # magic, header bytes and their CRC-32


@dataclass(frozen=True)
class Source:
    """A block of an index: its file's name, or its content if it is in memory, its size, and what computing it took."""

    content: str | bytes
    size: int
    rows: int
    seconds: float


class Index:
    """Sorted keys (N,) of some blocks, and for each key its block, and the places and CRC-32s of its K rows (N, K).

    Rows of blocks that are not `alive` (M,) any more are never found.
    """

    def __init__(self, arrays: tuple[Array, ...], sources: Sequence[Source], tables: Sequence[np.ndarray]) -> None:
        self.arrays, self.sources = arrays, list(sources)
        self.keys, self.blocks, self.offsets, self.lengths, self.checks = tables
        self.columns = {array.name: number for number, array in enumerate(arrays)}
        self.alive = np.ones(len(sources), bool)
        self._sizes = np.asarray([source.size for source in sources], np.int64)
        self._verified = bytearray(math.ceil(self.checks.size / 8))  # a bit for each row

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(n,) the position of each key, -1 where it has no row. Of several, the first that was written counts."""
        at, last = np.searchsorted(self.keys, keys), len(self.keys) - 1
        while True:
            here = np.minimum(at, last)
            same = (at <= last) & (self.keys[here] == keys)
            dropped = same & ~self.alive[self.source_of(here)]
            if not dropped.any():
                return np.where(same, at, -1)
            at = at + dropped

    def source_of(self, positions: np.ndarray) -> np.ndarray:
        """(n,) the number of the block of each position; one that does not exist, in a damaged index, is the last."""
        return np.minimum(self.blocks[positions], len(self.sources) - 1)

    def places(self, name: str, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) each: block, offset in it and length in entries of one array's rows; 0 in a damaged index."""
        sources, column = self.source_of(positions), self.columns[name]
        offsets, lengths = self.offsets[positions, column], self.lengths[positions, column].astype(np.int64)
        inside = (offsets >= 0) & (offsets + lengths * self.arrays[column].entry_bytes <= self._sizes[sources])
        return sources, offsets * inside, lengths * inside

    def is_verified(self, position: int, column: int) -> bool:
        """Whether the row at a position has matched its checksum before."""
        bit = position * len(self.arrays) + column
        return bool(self._verified[bit >> 3] >> (bit & 7) & 1)

    def set_verified(self, position: int, column: int) -> None:
        bit = position * len(self.arrays) + column
        self._verified[bit >> 3] |= 1 << (bit & 7)

    def save(self, file: Path) -> None:
        """Write the index of files. Raises OSError."""
        sources = [list(asdict(source).values()) for source in self.sources]
        arrays = [list(asdict(array).values()) for array in self.arrays]
        header = json.dumps({"format": FORMAT, "rows": len(self.keys), "arrays": arrays, "sources": sources}).encode()
        header += b" " * (-(len(header) + _PREFIX.size) % 8)
        with atomic_file(file) as partial, partial.open("wb") as stream:
            stream.write(_PREFIX.pack(_MAGIC, len(header), zlib.crc32(header)) + header)
            for table in (self.keys, self.offsets, self.lengths, self.checks, self.blocks):
                stream.write(np.ascontiguousarray(table).data)


def index_of(blocks: Iterable[tuple[str | bytes, Block]]) -> list[Index]:
    """The rows of some blocks, one index for all blocks with the same arrays."""
    by_arrays: dict[tuple[Array, ...], list[tuple[str | bytes, Block]]] = {}
    for content, block in blocks:
        by_arrays.setdefault(block.arrays, []).append((content, block))
    found = []
    for arrays, several in by_arrays.items():
        sources = [Source(content, block.size, len(block.keys), block.seconds) for content, block in several]
        numbers = np.repeat(np.arange(len(several), dtype=np.uint32), [source.rows for source in sources])
        names = ("offsets", "lengths", "checks")
        tables = [np.concatenate([getattr(block, name) for _, block in several]) for name in names]
        found.append(_sorted(arrays, sources, [np.concatenate([block.keys for _, block in several]), numbers, *tables]))
    return found


def joined(several: Sequence[Index]) -> Index:
    """One index of all blocks that are alive, for indexes with the same arrays."""
    sources = list[Source]()
    tables: list[list[np.ndarray]] = [[], [], [], [], []]
    for one in several:
        numbers = (np.cumsum(one.alive) - 1 + len(sources)).astype(np.uint32)
        rows = one.alive[one.blocks]
        own = (one.keys, numbers[one.blocks], one.offsets, one.lengths, one.checks)
        for table, values in zip(tables, own, strict=True):
            table.append(values[rows])
        sources += [source for source, alive in zip(one.sources, one.alive, strict=True) if alive]
    return _sorted(several[0].arrays, sources, [np.concatenate(table) for table in tables])


def _sorted(arrays: tuple[Array, ...], sources: Sequence[Source], tables: Sequence[np.ndarray]) -> Index:
    order = np.argsort(tables[0], kind="stable")
    return Index(arrays, sources, [table[order] for table in tables])


def open_index(file: Path) -> Index:
    """The index in a file, mapped. Raises Damaged, or OSError where it cannot be read."""
    with file.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        magic, header_bytes, check = _PREFIX.unpack_from(content)
        header = content[_PREFIX.size : _PREFIX.size + header_bytes]
        if magic != _MAGIC or zlib.crc32(header) != check:
            raise Damaged("is damaged")
        about = json.loads(header)
        if about["format"] != FORMAT:
            raise Damaged("is no index of this dcclip")
        arrays = tuple(Array(name, dtype, tuple(shape), ragged) for name, dtype, shape, ragged in about["arrays"])
        sources = [Source(*source) for source in about["sources"]]
        rows, place, tables = about["rows"], _PREFIX.size + header_bytes, list[np.ndarray]()
        for dtype, width in (("S16", 1), ("<i8", len(arrays)), ("<u4", len(arrays)), ("<u4", len(arrays)), ("<u4", 1)):
            table = np.frombuffer(content, dtype, rows * width, place)
            tables.append(table if width == 1 and len(tables) in (0, 4) else table.reshape(rows, width))
            place += table.nbytes
    except (ValueError, struct.error) as error:
        raise Damaged(f"is damaged: {error}") from None
    keys, offsets, lengths, checks, blocks = tables
    return Index(arrays, sources, [keys, blocks, offsets, lengths, checks])
