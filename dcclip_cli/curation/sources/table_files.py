"""Files of rows, readable from any position: TSV, CSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dcclip_cli.curation.sources.base import Slice, index_slices
from dcclip_cli.data.reading import Drop, cuts, lines, records
from dcclip_cli.errors import DcclipError
from dcclip_cli.text import not_utf8

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_AT_A_TIME = 16  # of Parquet and Arrow in memory: each may contain an image of MAX_IMAGE_BYTES
_HEADER_ROWS = 100  # of JSON lines, whose keys are the columns
_MAX_ROWS_PER_BYTE = 10  # of Parquet: an image and a caption take more than a byte, however well compressed

Cells = dict[str, Any] | Drop  # a row by its columns, or why it cannot be read


class TextTable:
    """A .tsv, .csv or .jsonl file in UTF-8; `header` names its columns if no line does, `limit` is in bytes of a row.

    TSV: cells never contain tabs; quotes have no meaning. CSV as in RFC 4180: a quoted cell may contain commas, line
    ends and doubled quotes. JSON lines: the keys of the objects are the columns, and any may be absent.
    """

    def __init__(self, path: Path, header: tuple[str, ...], limit: int) -> None:
        self.path, self.header, self.limit = path, header, limit
        self._csv, self._tsv = (path.suffix.lower() == suffix for suffix in (".csv", ".tsv"))
        csv.field_size_limit(max(csv.field_size_limit(), limit))

    def columns(self) -> list[str]:
        """The names of the columns; empty if the file is empty."""
        with self.path.open("rb") as stream:
            if not (self._csv or self._tsv):
                rows = [self._cells(row.content or b"", []) for row in islice(lines(stream, self.limit), _HEADER_ROWS)]
                return list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
            first = "" if self.header else self._first(stream)
        try:
            return [name.strip() for name in self._split(first)] if first else list(self.header)
        except csv.Error as error:
            raise DcclipError("{}:1: the header is not CSV: {}", "fix its quotes", self.path, error) from None

    def slices(self, size: int) -> Iterator[Slice]:
        """Slices of `size` rows."""
        with self.path.open("rb") as stream:
            number = 1
            if (self._csv or self._tsv) and not self.header:
                self._first(stream)
                number = 2
            rows = (records if self._csv else lines)(stream, self.limit, number)
            yield from (Slice(cut._asdict(), cut.lines) for cut in cuts(stream, rows, size))

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """The rows of one slice, each with its line number, counted from 1."""
        columns = self.columns()
        with self.path.open("rb") as stream:
            stream.seek(part["start"])
            for row in (records if self._csv else lines)(stream, self.limit, part["number"]):
                if row.start >= part["end"]:
                    return
                if row.content is None:
                    yield str(row.number), Drop("row-malformed", f"more than {self.limit:,} bytes")
                elif row.content.strip(b"\r\n"):
                    yield str(row.number), self._cells(row.content, columns)

    def _first(self, stream: BinaryIO) -> str:
        """The header line, with which `stream` begins."""
        try:
            return stream.readline(self.limit).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise not_utf8(self.path) from None

    def _split(self, text: str) -> list[str]:
        text = text.rstrip("\r\n")
        return next(csv.reader([text], strict=True), [""]) if self._csv else text.split("\t")

    def _cells(self, content: bytes, columns: list[str]) -> Cells:
        try:
            text = content.decode("utf-8-sig")  # any line may begin with a BOM, as files are concatenated
            if not (self._csv or self._tsv):
                row = json.loads(text)
                return row if isinstance(row, dict) else Drop("row-not-json", "not a JSON object")
            cells = self._split(text)
        except UnicodeDecodeError as error:
            return Drop("row-malformed", f"not in UTF-8: {error.reason} at byte {error.start}")
        except csv.Error as error:
            return Drop("row-malformed", f"not CSV: {error}")
        except (ValueError, RecursionError) as error:
            return Drop("row-not-json", str(error)[:200])
        if len(cells) != len(columns):
            return Drop("row-malformed", f"{len(cells)} cells, the header has {len(columns)}")
        return dict(zip(columns, cells, strict=True))


class ParquetTable:
    """A Parquet file; its row groups are read one after the other, a few rows at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> list[str]:
        """The names of the columns; empty if the file cannot be read."""
        file = self._open()
        return [] if isinstance(file, Drop) else list(file.schema_arrow.names)

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` rows; an unreadable file is a slice with one fault."""
        file = self._open()
        return index_slices(1 if isinstance(file, Drop) else file.metadata.num_rows, size)

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """The rows of one slice, each with its number, counted from 1.

        A damaged row group gives the rows before the damage and one fault; then the next group is read.
        """
        import pyarrow as pa

        file, start = self._open(), 0
        if isinstance(file, Drop):
            yield "1", file
            return
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            row, last = max(start, part["first"]), min(end, part["last"])
            if row < last:
                try:
                    for cells in _cells_of_group(file, group, row - start, last - row):
                        row += 1
                        yield str(row), cells
                except (pa.ArrowException, OSError) as error:
                    what = f"{last - row} rows from here on can't be read: {str(error)[:200]}"
                    yield str(row + 1), Drop("table-unreadable", what)
            start = end

    def _open(self) -> pq.ParquetFile | Drop:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path, memory_map=True, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            return Drop("table-unreadable", f"{self.path.name} is not a Parquet file: {str(error)[:200]}")
        if file.metadata.num_rows > _MAX_ROWS_PER_BYTE * self.path.stat().st_size:
            return Drop("table-unreadable", f"{self.path.name} claims to have {file.metadata.num_rows:,} rows")
        return file


def _cells_of_group(file: pq.ParquetFile, group: int, skip: int, take: int) -> Iterator[Cells]:
    for batch in file.iter_batches(ROWS_AT_A_TIME, [group]):
        rest = batch.slice(skip, take)
        skip, take = max(0, skip - batch.num_rows), take - rest.num_rows
        yield from cells_of(rest)
        if not take:
            return


def cells_of(batch: pa.RecordBatch) -> Iterator[Cells]:
    """The rows of a batch; a row that Python has no values for is a fault of its own."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # text that is not UTF-8, or an impossible date: the fault of one row
        pass
    for row in range(batch.num_rows):
        try:
            yield batch.slice(row, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield Drop("row-malformed", str(error)[:200])
