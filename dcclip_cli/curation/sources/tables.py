"""Sources whose pairs are rows: TSV, CSV, JSON lines and Parquet files, and Hugging Face
`datasets`.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from pydantic import Field

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.hub import load_hub
from dcclip_cli.core.options import PathOption
from dcclip_cli.core.text import encoding_of, not_utf8
from dcclip_cli.curation.sources.base import (
    TOLD,
    Candidate,
    Slice,
    SourceOptions,
    Told,
    by_language,
    files_of,
    index_slices,
    key_prefix,
)
from dcclip_cli.data import reading
from dcclip_cli.data.pair import Pair, check_once
from dcclip_cli.data.reading import Drop, Fault, Folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

Names = str | tuple[str, ...]
_IMAGES = ("image", "url")  # the first that a row has is used
ROWS_AT_A_TIME = (
    16  # of Parquet and Arrow in memory: each may contain an image of reading.MAX_IMAGE_BYTES
)
_MAX_ROWS_PER_BYTE = (
    10  # of Parquet: an image and a caption take more than a byte, however well compressed
)

Cells = dict[str, Any] | Drop  # a row by its columns, or why it cannot be read
_SUFFIXES = (*reading.TABLE_SUFFIXES, ".parquet")


class Roles(NamedTuple):
    """The columns with images and captions; all others are metadata."""

    images: list[tuple[str, str]]  # one of _IMAGES, and the column
    captions: list[tuple[Told, str]]


class ColumnOptions(SourceOptions):
    """Names of columns. A column that is not given is found by the field's own name, in upper or
    lower case.
    """

    image: str | None = Field(None, description="Column with image paths or image bytes")
    url: str | None = Field(None, description="Column with image URLs to download")
    zh: Names | None = Field(None, description="Column, or list of columns, with Chinese captions")
    en: Names | None = Field(None, description="Column, or list of columns, with English captions")
    caption: Names | None = Field(
        None, description="Column, or list of columns, with captions in either language"
    )
    where: dict[str, Names] = Field(
        {}, description="Read only rows in which the column has one of these values"
    )

    def roles(self, columns: Iterable[str]) -> Roles:
        """The columns with images and captions: those named in the recipe, else those of `columns`
        with such names.
        """
        by_field = {name.lower(): name for name in reversed(list(columns))}
        images = self._named(_IMAGES) or [
            (kind, by_field[kind]) for kind in _IMAGES if kind in by_field
        ]
        captions: list[Any] = self._named(TOLD) or [
            (told, by_field[told]) for told in TOLD if told in by_field
        ]
        return Roles(images, captions)

    def check_columns(self, headers: Iterable[Sequence[str]], place: str) -> None:
        """Raise DcclipError if a column is in none of the `headers`, or none of them has images or
        captions.
        """
        columns = dict[str, None]()
        missing = list[str]()
        for header in headers:
            columns |= dict.fromkeys(header)
            images, captions = self.roles(columns)
            named = [*(column for _, column in (*images, *captions)), *self.where]
            check_once(named, header, place)
            missing = [column for column in named if column not in columns]
            missing = missing or [*(() if images else _IMAGES)] or [*(() if captions else TOLD)]
            if not missing:
                return
        if missing:
            hint = Message(
                "set the columns, for example: {{kind: table, path: ..., image: "
                "FILENAME, caption: TEXT}}"
            )
            message = Message(
                "{} has no column {} (found: {})",
                place,
                " or ".join(missing),
                ", ".join(columns)[:300],
            )
            raise DcclipError(message, hint)

    def _named(self, fields: Sequence[str]) -> list[tuple[str, str]]:
        return [(field, column) for field in fields for column in _many(getattr(self, field))]

    def candidates(
        self, rows: Iterable[tuple[str, Cells, Roles]], folder: Folder
    ) -> Iterator[Candidate]:
        """The rows that `where` selects, by their keys, as candidates; images are read from
        `folder`.
        """
        for key, row, roles in rows:
            if isinstance(row, Drop):
                yield Candidate(Pair(key, b""), row)
            elif all(
                str(row.get(column)) in _many(values) for column, values in self.where.items()
            ):
                yield self._candidate(key, row, roles, folder)

    def _candidate(
        self, key: str, row: Mapping[str, Any], roles: Roles, folder: Folder
    ) -> Candidate:
        pair = Pair(key, b"")
        try:
            captions = [
                (told, text)
                for told, column in roles.captions
                for text in reading.texts_of(row.get(column), column)
            ]
            used = {column for kind, column in (*roles.captions, *roles.images) if kind != "image"}
            meta = {
                name: reading.plain(cell)
                for name, cell in row.items()
                if name not in used
                and not isinstance(cell.get("bytes") if isinstance(cell, dict) else cell, bytes)
            }
            pair = replace(pair, **by_language(captions), meta=meta)
            urls = [
                row[column] for kind, column in roles.images if kind == "url" and row.get(column)
            ]
            url = urls[0].strip() if urls and isinstance(urls[0], str) else None
            if url:
                pair = replace(pair, meta=meta | {"url": url})
            for kind, column in roles.images:
                cell = row.get(column)
                if cell and kind != "url":
                    return Candidate(replace(pair, image=_image(cell, folder)))
            if url:
                return Candidate(pair, url=url)
            columns = [column for _, column in roles.images] or _IMAGES
            return Candidate(
                pair, Drop("image-missing", f"nothing in column {' or '.join(columns)}")
            )
        except Fault as fault:
            return Candidate(pair, fault.drop)


def _many(names: Names | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _image(cell: Any, folder: Folder) -> bytes:
    if isinstance(cell, dict):  # {bytes, path}, as `datasets` stores images
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        if len(cell) > reading.MAX_IMAGE_BYTES:
            raise Fault("image-bytes", f"more than {reading.MAX_IMAGE_BYTES:,} bytes")
        return cell
    if not isinstance(cell, str) or not cell:
        raise Fault("image-missing", "neither a path nor bytes")
    if cell.startswith(("http://", "https://")):
        raise Fault(
            "image-missing", f"{cell[:200]} is a URL: name its column as `url` in the recipe"
        )
    return folder.read(folder.path / Path(cell), reading.MAX_IMAGE_BYTES, "image")


class TableSource(ColumnOptions):
    """A file of rows, a folder of such files, or a pattern like `./wukong/*.csv`; the suffix gives
    the format.

    Columns without captions or images become metadata. Text files are in UTF-8. Keys (`key`) and
    metadata (`meta`, JSON) of Parquet files that dcclip wrote are kept.
    """

    kind: Literal["table"] = "table"
    path: PathOption = Field(
        description="A .tsv, .csv, .jsonl or .parquet file, a folder of them, or a pattern"
    )
    header: tuple[str, ...] = Field(
        (), description="Column names, for TSV and CSV files without a header line"
    )
    images: PathOption | None = Field(
        None,
        description="Folder that image paths are relative to; default: the folder of the table",
    )

    def slices(self, size: int) -> list[Slice]:
        slices: list[Slice] = []
        for file in files_of(self.path, _SUFFIXES):
            table = self._open(file)
            self.check_columns(
                table.headers(), str(file) if isinstance(table, ParquetTable) else f"{file}:1"
            )
            slices += [
                Slice({"file": str(file), **part.part}, part.estimate)
                for part in table.slices(size)
            ]
        return slices

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with their own key, or else their line number, in Parquet their row number,
        counted from 1.
        """
        file = Path(part["file"])
        prefix = key_prefix(self.path, file)
        table = self._open(file)

        def rows() -> Iterator[tuple[str, Cells, Roles]]:
            columns = tuple[str, ...]()
            roles = Roles([], [])
            for key, row in table.rows(part):
                if (
                    not isinstance(row, Drop) and tuple(row) != columns
                ):  # of JSON, lines may have others
                    columns = tuple(row)
                    roles = self.roles(columns)
                if not isinstance(row, Drop) and {"key", "meta"} <= row.keys():  # dcclip wrote it
                    key = str(row.pop("key"))
                    meta = row.pop("meta")
                    try:
                        meta = json.loads(meta or "{}")
                        row = (
                            {**meta, **row}
                            if isinstance(meta, dict)
                            else Drop("row-not-json", "meta is not a JSON object")
                        )
                    except (TypeError, ValueError, RecursionError) as error:
                        row = Drop("row-not-json", f"meta: {str(error)[:200]}")
                yield f"{prefix}{key}", row, roles

        return self.candidates(rows(), Folder(self.images or file.parent))

    def _open(self, file: Path) -> TextTable | ParquetTable:
        if file.suffix.lower() not in _SUFFIXES:
            raise DcclipError(
                "{} is not a table file", "use one of these types: {}", file, ", ".join(_SUFFIXES)
            )
        if file.suffix.lower() == ".parquet":
            return ParquetTable(file)
        return TextTable(file, self.header)


class HubSource(ColumnOptions):
    """One split of a data set on the Hugging Face hub, or in a folder written by `save_to_disk`.

    Code of the data set is never executed. Image files are read without decoding. The whole split
    of a hub data set is downloaded into the cache of `datasets` first.
    """

    kind: Literal["hub"] = "hub"
    path: str = Field(description="A hub name like ORG/NAME, or a folder like ./saved")
    config: str | None = Field(None, description="Configuration of the data set, if it has several")
    split: str = Field("train", description="Split of the data set")
    revision: str | None = Field(
        None, description="Commit, tag or branch on the hub; only a commit is immutable"
    )

    def slices(self, size: int) -> list[Slice]:
        data = self._open()
        self.check_columns([data.column_names], self.path)
        return index_slices(data.num_rows, size)

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with their row number as key, counted from 0 as in `datasets`."""
        from datasets import config

        data = self._open()
        roles = self.roles(data.column_names)
        rows = _dataset_rows(data.with_format("arrow"), part["first"], part["last"])
        # Image paths may lead into a local data set's own folder, or into the cache of `datasets`.
        folder = Path(self.path) if os.path.isdir(self.path) else Path(config.HF_DATASETS_CACHE)
        return self.candidates(((key, row, roles) for key, row in rows), Folder(folder))

    def _open(self) -> Dataset:
        return load_hub(self.path, self.config, self.split, self.revision)


def _dataset_rows(data: Dataset, first: int, last: int) -> Iterator[tuple[str, Cells]]:
    import pyarrow as pa

    for start in range(first, last, ROWS_AT_A_TIME):
        end = min(start + ROWS_AT_A_TIME, last)
        done = count(start)
        try:
            for batch in data[start:end].to_batches():
                yield from ((str(next(done)), cells) for cells in cells_of(batch))
        except (pa.ArrowException, OSError) as error:
            detail = f"rows {start} to {end - 1} can't be read: {str(error)[:200]}"
            yield str(next(done)), Drop("table-unreadable", detail)


class TextTable:
    """A .tsv, .csv or .jsonl file in UTF-8; `header` names its columns if no line does.

    TSV: cells never contain tabs; quotes have no meaning. CSV as in RFC 4180: a quoted cell may
    contain commas, line ends and doubled quotes. JSON lines: the keys of the objects are the
    columns, and any may be absent.
    """

    def __init__(self, path: Path, header: tuple[str, ...]) -> None:
        self.path = path
        self.header = header
        suffix = path.suffix.lower()
        self._csv = suffix == ".csv"
        self.is_json = suffix in (".jsonl", ".ndjson")
        self._read = reading.records if self._csv else reading.lines
        csv.field_size_limit(max(csv.field_size_limit(), reading.MAX_TEXT_BYTES))

    def headers(self) -> Iterator[list[str]]:
        """The names of the columns, of JSON those of each line; nothing if the file is empty."""
        with self.path.open("rb") as stream:
            if self.is_json:
                rows = (
                    self._cells(row.content or b"", [])
                    for row in self._read(stream, reading.MAX_TEXT_BYTES)
                )
                yield from (list(row) for row in rows if isinstance(row, dict))
                return
            first = self._first(stream)
        try:
            names = [name.strip() for name in self._split(first)] if first else list(self.header)
        except csv.Error as error:
            raise DcclipError(
                "{}:1: invalid CSV header: {}", "fix the quotes in line 1", self.path, error
            ) from None
        if names:
            yield names

    def slices(self, size: int) -> Iterator[Slice]:
        with self.path.open("rb") as stream:
            sample = stream.read(65_536)
            try:
                codecs.getincrementaldecoder("utf-8")().decode(sample)
            except UnicodeDecodeError:  # of some rows, or of all
                if encoding_of(sample):
                    raise not_utf8(self.path) from None
            stream.seek(0)
            rows = self._read(stream, reading.MAX_TEXT_BYTES, 2 if self._first(stream) else 1)
            yield from (Slice(cut._asdict(), cut.lines) for cut in reading.cuts(stream, rows, size))

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """The rows of one slice, each with its line number, counted from 1."""
        columns = [] if self.is_json else next(self.headers(), [])
        with self.path.open("rb") as stream:
            stream.seek(part["start"])
            for row in self._read(stream, reading.MAX_TEXT_BYTES, part["number"]):
                if row.start >= part["end"]:
                    return
                if row.content is None:
                    yield (
                        str(row.number),
                        Drop("row-malformed", f"more than {reading.MAX_TEXT_BYTES:,} bytes"),
                    )
                elif row.content.strip(b"\r\n"):
                    yield str(row.number), self._cells(row.content, columns)

    def _first(self, stream: BinaryIO) -> str:
        """The header line, with which `stream` begins; "" where there is none."""
        if self.is_json or self.header:
            return ""
        try:
            return stream.readline(reading.MAX_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise not_utf8(self.path) from None

    def _split(self, text: str) -> list[str]:
        text = text.rstrip("\r\n")
        return next(csv.reader([text], strict=True), [""]) if self._csv else text.split("\t")

    def _cells(self, content: bytes, columns: list[str]) -> Cells:
        try:
            text = content.decode(
                "utf-8-sig"
            )  # any line may begin with a BOM, as files are concatenated
            if self.is_json:
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

    def headers(self) -> Iterator[list[str]]:
        """The names of the columns; nothing if the file cannot be read."""
        if not isinstance(file := self._open(), Drop):
            yield list(file.schema_arrow.names)

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` rows; an unreadable file is a slice with one fault."""
        file = self._open()
        return index_slices(1 if isinstance(file, Drop) else file.metadata.num_rows, size)

    def rows(self, part: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
        """The rows of one slice, each with its number, counted from 1.

        A damaged row group gives the rows before the damage and one fault; then the next group is
        read.
        """
        import pyarrow as pa

        file = self._open()
        start = 0
        if isinstance(file, Drop):
            yield "1", file
            return
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            row = max(start, part["first"])
            last = min(end, part["last"])
            batches = file.iter_batches(ROWS_AT_A_TIME, [group]) if row < last else ()
            try:
                for batch in batches:
                    for cells in cells_of(batch.slice(row - start, last - row)):
                        row += 1
                        yield str(row), cells
                    start += batch.num_rows
                    if row == last:
                        break
            except (pa.ArrowException, OSError) as error:
                detail = f"{last - row} rows from here on can't be read: {str(error)[:200]}"
                yield str(row + 1), Drop("table-unreadable", detail)
            start = end

    def _open(self) -> pq.ParquetFile | Drop:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path, memory_map=True, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            return Drop(
                "table-unreadable", f"{self.path.name} is not a Parquet file: {str(error)[:200]}"
            )
        if file.metadata.num_rows > _MAX_ROWS_PER_BYTE * self.path.stat().st_size:
            return Drop(
                "table-unreadable",
                f"{self.path.name} claims to have {file.metadata.num_rows:,} rows",
            )
        return file


def cells_of(batch: pa.RecordBatch) -> Iterator[Cells]:
    """The rows of a batch; a row that Python has no values for is a fault of its own."""
    try:
        yield from batch.to_pylist()
        return
    except (
        ValueError,
        OverflowError,
    ):  # text that is not UTF-8, or an impossible date: the fault of one row
        pass
    for row in range(batch.num_rows):
        try:
            yield batch.slice(row, 1).to_pylist()[0]
        except (ValueError, OverflowError) as error:
            yield Drop("row-malformed", str(error)[:200])
