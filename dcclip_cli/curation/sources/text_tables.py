"""How are rows read out of text, from anywhere in it: TSV, CSV, JSON lines?"""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from dcclip_cli.curation.candidate import Drop, Slice
from dcclip_cli.curation.sources.tables import Cells, TableFile
from dcclip_cli.data.files.lines import Cut, Row, line_cuts, lines, record_cuts, records
from dcclip_cli.errors import DcclipError

_PEEK_ROWS = 100  # JSON lines name their columns themselves: so many are asked for them


class _TextFile(TableFile):
    """Rows that begin where a line does, in UTF-8."""

    def slices(self, size: int) -> Iterator[Slice]:
        with self.path.open("rb") as stream:
            for cut in self._cuts(stream, self._skip_header(stream), size):
                yield Slice({"start": cut.start, "end": cut.end, "number": cut.number}, cut.lines)

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        columns = self.columns()
        with self.path.open("rb") as stream:
            stream.seek(part["start"])
            for row in self._rows(stream, part["number"]):
                if row.start >= part["end"]:
                    return
                if row.content is None:
                    yield str(row.number), Drop("row-malformed", f"more than {self.limit:,} bytes")
                elif row.content.strip(b"\r\n"):
                    yield str(row.number), self._cells(row.content, columns)

    def _cells(self, content: bytes, columns: list[str]) -> Cells:
        try:
            # A BOM may begin any file, and files are joined end to end.
            return self._parse(content.decode("utf-8-sig"), columns)
        except UnicodeDecodeError as error:
            return Drop("row-malformed", f"not in UTF-8: {error.reason} at byte {error.start}")

    def _first(self, stream: BinaryIO) -> str:
        """The header line, at which `stream` has to stand."""
        try:
            return stream.readline(self.limit).decode("utf-8-sig")
        except UnicodeDecodeError:
            hint = f"convert it with: iconv -f GB18030 -t UTF-8 {self.path} > utf8{self.path.suffix}"
            raise DcclipError(f"{self.path} is not in UTF-8", hint) from None

    def _skip_header(self, stream: BinaryIO) -> int:
        """Put `stream` at the first row; the number of its line."""
        if self.header:
            return 1
        self._first(stream)
        return 2

    def _rows(self, stream: BinaryIO, number: int) -> Iterator[Row]:
        return lines(stream, self.limit, number)

    def _cuts(self, stream: BinaryIO, number: int, size: int) -> Iterator[Cut]:
        return line_cuts(stream, size, number)

    @abstractmethod
    def _parse(self, text: str, columns: list[str]) -> Cells: ...


class TsvFile(_TextFile):
    """Cells separated by tabs, which they never hold; quotes mean nothing. In UTF-8."""

    def columns(self) -> list[str]:
        if self.header:
            return list(self.header)
        with self.path.open("rb") as stream:
            first = self._first(stream)
        try:
            return [name.strip() for name in self._split(first)] if first else []
        except csv.Error as error:
            raise DcclipError(f"{self.path}:1: the header is not CSV: {error}", "mend its quotes") from None

    def _split(self, text: str) -> list[str]:
        return text.rstrip("\r\n").split("\t")

    def _parse(self, text: str, columns: list[str]) -> Cells:
        cells = self._split(text)
        if len(cells) != len(columns):
            return Drop("row-malformed", f"{len(cells)} cells, the header has {len(columns)}")
        return dict(zip(columns, cells, strict=True))


class CsvFile(TsvFile):
    """Cells separated by commas, as RFC 4180 has it: a quoted cell may hold commas, line ends and doubled quotes."""

    def _split(self, text: str) -> list[str]:
        csv.field_size_limit(max(csv.field_size_limit(), self.limit))
        return next(csv.reader([text.rstrip("\r\n")], strict=True), [""])

    def _parse(self, text: str, columns: list[str]) -> Cells:
        try:
            return super()._parse(text, columns)
        except csv.Error as error:
            return Drop("row-malformed", f"not CSV: {error}")

    def _rows(self, stream: BinaryIO, number: int) -> Iterator[Row]:
        return records(stream, self.limit, number)

    def _cuts(self, stream: BinaryIO, number: int, size: int) -> Iterator[Cut]:
        return record_cuts(stream, size, self.limit, number)


class JsonLinesFile(_TextFile):
    """A JSON object on each line; its keys are the columns, and any may be left out."""

    def columns(self) -> list[str]:
        names: dict[str, None] = {}
        with self.path.open("rb") as stream:
            for row, _ in zip(lines(stream, self.limit), range(_PEEK_ROWS), strict=False):
                cells = self._cells(row.content or b"", [])
                names |= dict.fromkeys(cells) if isinstance(cells, dict) else {}
        return list(names)

    def _skip_header(self, stream: BinaryIO) -> int:
        return 1

    def _parse(self, text: str, columns: list[str]) -> Cells:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            return Drop("row-malformed", f"not JSON: {str(error)[:200]}")
        return row if isinstance(row, dict) else Drop("row-malformed", "not a JSON object")
