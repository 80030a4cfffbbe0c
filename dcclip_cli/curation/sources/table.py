"""Pairs in tables: TSV, CSV, JSON lines and Parquet files with images as paths, bytes, base64 or URLs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate, Drop, Slice
from dcclip_cli.curation.sources.base import files_of, place_in
from dcclip_cli.curation.sources.columns import ColumnOptions, Roles
from dcclip_cli.curation.sources.parquet_table import ParquetTable
from dcclip_cli.curation.sources.tables import TableFile
from dcclip_cli.curation.sources.text_tables import CsvFile, JsonLinesFile, TsvFile
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Folder
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError

_MAX_ROW_WITH_IMAGE = MAX_IMAGE_BYTES * 4 // 3 + MAX_TEXT_BYTES  # base64 takes four bytes for three
KINDS: dict[str, type[TableFile]] = {  # by suffix
    ".tsv": TsvFile,
    ".csv": CsvFile,
    ".jsonl": JsonLinesFile,
    ".ndjson": JsonLinesFile,
    ".parquet": ParquetTable,
}


class TableSource(ColumnOptions):
    """A file of rows, a folder of such files, or a pattern like `./wukong/*.csv`; the suffix tells the format.

    Columns that hold neither captions nor images become metadata. Texts are in UTF-8.
    """

    kind: Literal["table"] = "table"
    path: Path = Field(description="A .tsv, .csv, .jsonl or .parquet file, a folder of them, or a pattern")
    header: tuple[str, ...] = Field((), description="Names of the columns, for TSV and CSV without a header line")
    images: Path | None = Field(None, description="Folder that image paths start from; the table's own if left out")

    def slices(self, size: int) -> list[Slice]:
        """Runs of `size` rows, or nearly. Raises DcclipError where a column is missing."""
        return [
            Slice({"file": str(file), **part.part}, part.about)
            for file in files_of(self.path, tuple(KINDS))
            for part in self._open(file, self._roles(file)).slices(size)
        ]

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates named after their line, in Parquet their row, counted from 1."""
        file = Path(part["file"])
        folder = Folder(self.images or file.parent, self.allow_outside)
        place, roles = place_in(self.path, file), self._roles(file)
        for number, row in self._open(file, roles).rows(part):
            if isinstance(row, Drop):
                yield Candidate(Pair(f"{place}{number}", b""), row)
            elif self.wanted(row):
                yield self.candidate(f"{place}{number}", row, roles, folder)

    def _open(self, file: Path, roles: Roles | None) -> TableFile:
        kind = KINDS.get(file.suffix.lower())
        if kind is None:
            raise DcclipError(f"{file} is no table", f"a table's file ends in {', '.join(KINDS)}")
        in_rows = roles is None or any(kind == "base64" for kind, _ in roles.images)
        return kind(file, self.header, _MAX_ROW_WITH_IMAGE if in_rows else MAX_TEXT_BYTES)

    def _roles(self, file: Path) -> Roles:
        columns = self._open(file, None).columns()
        if not columns:  # an empty file, or one of which nothing can be read
            return Roles((), ())
        return self.roles(columns, str(file) if file.suffix.lower() == ".parquet" else f"{file}:1")
