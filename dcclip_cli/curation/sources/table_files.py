"""Files of rows, readable from any position: TSV, CSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dcclip_cli.curation.sources.base import Slice
from dcclip_cli.data.reading import Drop, line_cuts, lines, record_cuts, records
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_AT_A_TIME = 16  # of Parquet and Arrow in memory: each may contain an image of MAX_IMAGE_BYTES
_HEADER_ROWS = 100  # of JSON lines, whose keys are the columns
_MAX_ROWS_PER_BYTE = 10  # of Parquet: an image and a caption take more than a byte, however well compressed

Cells = dict[str, Any] | Drop  # a row by its columns, or why it cannot be read


class TableFile(ABC):
    """One file of rows; `header` names its columns if no line does, `limit` is the maximum size of a row in bytes."""

    def __init__(self, path: Path, header: tuple[str, ...] = (), limit: int = 0) -> None:
        self.path = path
        self.header = header
        self.limit = limit

    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns; empty if the file has none or cannot be read."""

    @abstractmethod
    def slices(self, size: int) -> Iterator[Slice]:
        """Slices of about `size` rows."""

    @abstractmethod
    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """The rows of one slice, each with its line number, in Parquet its row number; counted from 1."""


class _TextFile(TableFile):
    """Rows that begin where a line does, in UTF-8."""

    has_header_line = True
    quoted = False  # whether a row may contain line ends

    @abstractmethod
    def _parse(self, text: str, columns: list[str]) -> Cells: ...

    def slices(self, size: int) -> Iterator[Slice]:
        with self.path.open("rb") as stream:
            number = 1
            if not self.header and self.has_header_line:
                self._first(stream)
                number = 2
            cuts = record_cuts(stream, size, self.limit, number) if self.quoted else line_cuts(stream, size, number)
            for cut in cuts:
                yield Slice({"start": cut.start, "end": cut.end, "number": cut.number}, cut.lines)

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        columns = self.columns()
        with self.path.open("rb") as stream:
            stream.seek(part["start"])
            for row in (records if self.quoted else lines)(stream, self.limit, part["number"]):
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
            hint = f"convert it with: iconv -f GB18030 -t UTF-8 {self.path} > utf8{self.path.suffix}"
            raise DcclipError(f"{self.path} is not in UTF-8", hint) from None

    def _cells(self, content: bytes, columns: list[str]) -> Cells:
        try:
            # Any line may begin with a BOM, as files are concatenated.
            return self._parse(content.decode("utf-8-sig"), columns)
        except UnicodeDecodeError as error:
            return Drop("row-malformed", f"not in UTF-8: {error.reason} at byte {error.start}")


class TsvFile(_TextFile):
    """Cells separated by tabs, which cells never contain; quotes have no meaning."""

    def columns(self) -> list[str]:
        if self.header:
            return list(self.header)
        with self.path.open("rb") as stream:
            first = self._first(stream)
        try:
            return [name.strip() for name in self._split(first)] if first else []
        except csv.Error as error:
            raise DcclipError(f"{self.path}:1: the header is not CSV: {error}", "fix its quotes") from None

    def _parse(self, text: str, columns: list[str]) -> Cells:
        cells = self._split(text)
        if len(cells) != len(columns):
            return Drop("row-malformed", f"{len(cells)} cells, the header has {len(columns)}")
        return dict(zip(columns, cells, strict=True))

    def _split(self, text: str) -> list[str]:
        return text.rstrip("\r\n").split("\t")


class CsvFile(TsvFile):
    """Cells separated by commas as in RFC 4180: a quoted cell may contain commas, line ends and doubled quotes."""

    quoted = True

    def _split(self, text: str) -> list[str]:
        csv.field_size_limit(max(csv.field_size_limit(), self.limit))
        return next(csv.reader([text.rstrip("\r\n")], strict=True), [""])

    def _parse(self, text: str, columns: list[str]) -> Cells:
        try:
            return super()._parse(text, columns)
        except csv.Error as error:
            return Drop("row-malformed", f"not CSV: {error}")


class JsonLinesFile(_TextFile):
    """A JSON object in each line; its keys are the columns, and any may be absent."""

    has_header_line = False

    def columns(self) -> list[str]:
        names: dict[str, None] = {}
        with self.path.open("rb") as stream:
            for row in islice(lines(stream, self.limit), _HEADER_ROWS):
                cells = self._cells(row.content or b"", [])
                names |= dict.fromkeys(cells) if isinstance(cells, dict) else {}
        return list(names)

    def _parse(self, text: str, columns: list[str]) -> Cells:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            return Drop("row-malformed", f"not JSON: {str(error)[:200]}")
        return row if isinstance(row, dict) else Drop("row-malformed", "not a JSON object")


class ParquetTable(TableFile):
    """A Parquet file; its row groups are read one after the other, a few rows at a time."""

    def columns(self) -> list[str]:
        file = self._open()
        return [] if isinstance(file, Drop) else list(file.schema_arrow.names)

    def slices(self, size: int) -> Iterator[Slice]:
        """Small row groups are joined, large ones divided; an unreadable file is a slice with one fault."""
        file = self._open()
        if isinstance(file, Drop):
            yield Slice({"groups": [0, 0], "skip": 0, "rows": 1, "number": 1}, 1)
            return
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        first, held, number = 0, 0, 1
        for group, count in enumerate(counts):
            held += count
            if held < size and group + 1 < len(counts):
                continue
            parts = max(1, round(held / size))
            bounds = [held * part // parts for part in range(parts + 1)]
            for start, end in pairwise(bounds):
                if end > start:
                    part = {"groups": [first, group + 1], "skip": start, "rows": end - start, "number": number + start}
                    yield Slice(part, end - start)
            first, held, number = group + 1, 0, number + held

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """A damaged row group gives the rows before the damage and one fault; then the next group is read."""
        import pyarrow as pa

        file, number, skip, left = self._open(), part["number"], part["skip"], part["rows"]
        if isinstance(file, Drop):
            yield str(number), file
            return
        for group in range(*part["groups"]):
            rows = file.metadata.row_group(group).num_rows
            take, done = min(rows - skip, left), 0
            if take > 0:
                try:
                    for cells in _cells_of_group(file, group, skip, take):
                        yield str(number + done), cells
                        done += 1
                except (pa.ArrowException, OSError) as error:
                    what = f"{take - done} rows from here on can't be read: {str(error)[:200]}"
                    yield str(number + done), Drop("table-unreadable", what)
                number, left = number + take, left - take
            skip = max(0, skip - rows)

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
