"""Sources whose pairs are rows: tables in files, and Hugging Face `datasets`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

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
from dcclip_cli.curation.sources.table_files import ROWS_AT_A_TIME, Cells, ParquetTable, TextTable, cells_of
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Drop, Fault, Folder, from_base64, plain, texts_of
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.hub import load_hub
from dcclip_cli.options import PathOption

if TYPE_CHECKING:
    from datasets import Dataset

Names = str | tuple[str, ...]
_IMAGES = ("image", "base64", "url")  # the first that a row has is used
_MAX_ROW_WITH_IMAGE = MAX_IMAGE_BYTES * 4 // 3 + MAX_TEXT_BYTES  # base64 takes four bytes for three
_SUFFIXES = (".tsv", ".csv", ".jsonl", ".ndjson", ".parquet")


class Roles(NamedTuple):
    """The columns with images and captions; all others are metadata."""

    images: list[tuple[str, str]]  # one of _IMAGES, and the column
    captions: list[tuple[Told, str]]


class ColumnOptions(SourceOptions):
    """Names of columns. A column that is not given is found by the field's own name, in upper or lower case."""

    image: str | None = Field(None, description="Column with image paths or image bytes")
    base64: str | None = Field(None, description="Column with image bytes in base64")
    url: str | None = Field(None, description="Column with image URLs to download")
    zh: Names | None = Field(None, description="Column, or list of columns, with Chinese captions")
    en: Names | None = Field(None, description="Column, or list of columns, with English captions")
    caption: Names | None = Field(
        None, description="Column, or list of columns, with captions whose language is detected from the script"
    )
    where: dict[str, Names] = Field({}, description="Read only rows whose column has this value, or one of these")
    allow_outside: bool = Field(False, description="Allow image paths outside the source's folder")

    def roles(self, found: Sequence[str], place: str) -> Roles:
        """The roles of the columns `found`. Raises DcclipError if one is missing, or none has images or captions."""
        own = {name.lower(): name for name in reversed(found)}
        images = self._named(_IMAGES) or [(kind, own[kind]) for kind in _IMAGES if kind in own]
        captions: list[Any] = self._named(TOLD) or [(told, own[told]) for told in TOLD if told in own]
        missing = [column for column in (*dict([*images, *captions]).values(), *self.where) if column not in found]
        if missing := missing or [*(() if images else _IMAGES)] or [*(() if captions else TOLD)]:
            hint = Message("name the columns in the recipe, like: {{kind: table, path: ..., url: URL, caption: TEXT}}")
            raise DcclipError("{}: no column {} (found: {})", hint, place, " or ".join(missing), ", ".join(found)[:300])
        return Roles(images, captions)

    def _named(self, fields: Sequence[str]) -> list[tuple[str, str]]:
        return [(field, column) for field in fields for column in _many(getattr(self, field))]

    def candidates(self, rows: Iterable[tuple[str, Cells]], roles: Roles, folder: Folder) -> Iterator[Candidate]:
        """The rows that `where` selects, by their keys, as candidates; images are read from `folder`."""
        for key, row in rows:
            if isinstance(row, Drop):
                yield Candidate(Pair(key, b""), row)
            elif all(str(row.get(column)) in _many(values) for column, values in self.where.items()):
                yield self._candidate(key, row, roles, folder)

    def _candidate(self, key: str, row: Mapping[str, Any], roles: Roles, folder: Folder) -> Candidate:
        pair = Pair(key, b"")
        try:
            captions = [(told, text) for told, column in roles.captions for text in texts_of(row.get(column), column)]
            spent = {column for kind, column in (*roles.captions, *roles.images) if kind != "image"}
            others = {name: cell for name, cell in row.items() if name not in spent and not _is_image(cell)}
            pair = replace(pair, **by_language(captions), meta={name: plain(cell) for name, cell in others.items()})
            return self._with_image(pair, row, roles, folder)
        except Fault as fault:
            return Candidate(pair, fault.drop)

    def _with_image(self, pair: Pair, row: Mapping[str, Any], roles: Roles, folder: Folder) -> Candidate:
        urls = [row[column] for kind, column in roles.images if kind == "url" and row.get(column)]
        url = urls[0].strip() if urls and isinstance(urls[0], str) else None
        if url:
            pair = replace(pair, meta=pair.meta | {"url": url})
        for kind, column in roles.images:
            cell = row.get(column)
            if cell and kind == "base64":
                return Candidate(replace(pair, image=from_base64(cell)))
            if cell and kind == "image":
                return Candidate(replace(pair, image=_image(cell, folder)))
        if url:
            return Candidate(pair, url=url)
        raise Fault("image-missing", f"nothing in column {' or '.join(column for _, column in roles.images)}")


def _many(names: Names | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _is_image(cell: Any) -> bool:
    return isinstance(cell.get("bytes") if isinstance(cell, dict) else cell, bytes)


def _image(cell: Any, folder: Folder) -> bytes:
    if isinstance(cell, dict):  # {bytes, path}, as `datasets` stores images
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        if len(cell) > MAX_IMAGE_BYTES:
            raise Fault("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
        return cell
    if not isinstance(cell, str) or not cell:
        raise Fault("image-missing", "neither a path nor bytes")
    if cell.startswith(("http://", "https://")):
        raise Fault("image-missing", f"{cell[:200]} is a URL: name its column as `url` in the recipe")
    return folder.read(folder.path / Path(cell), MAX_IMAGE_BYTES, "image")


class TableSource(ColumnOptions):
    """A file of rows, a folder of such files, or a pattern like `./wukong/*.csv`; the suffix gives the format.

    Columns without captions and images become metadata. Text files are in UTF-8. Of pairs that `dcclip` wrote into
    Parquet files, the keys (`key`) and metadata (`meta`, JSON) are kept.
    """

    kind: Literal["table"] = "table"
    path: PathOption = Field(description="A .tsv, .csv, .jsonl or .parquet file, a folder of them, or a pattern")
    header: tuple[str, ...] = Field((), description="Column names, for TSV and CSV files without a header line")
    images: PathOption | None = Field(
        None, description="Folder that image paths are relative to; default: the table's own"
    )

    def slices(self, size: int) -> list[Slice]:
        """Slices of about `size` rows. Raises DcclipError where a column is missing."""
        return [
            Slice({"file": str(file), **part.part}, part.about)
            for file in files_of(self.path, _SUFFIXES)
            for part in self._open(file, self._roles(file)).slices(size)
        ]

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with their own key, or else their line number, in Parquet their row number, counted from 1."""
        file = Path(part["file"])
        prefix, roles = key_prefix(self.path, file), self._roles(file)
        rows = (_as_written(number, row) for number, row in self._open(file, roles).rows(part))
        rows = ((f"{prefix}{key}", row) for key, row in rows)
        return self.candidates(rows, roles, Folder(self.images or file.parent, self.allow_outside))

    def _open(self, file: Path, roles: Roles | None) -> TextTable | ParquetTable:
        if file.suffix.lower() not in _SUFFIXES:
            raise DcclipError("{} is not a table", "supported suffixes: {}", file, ", ".join(_SUFFIXES))
        if file.suffix.lower() == ".parquet":
            return ParquetTable(file)
        in_rows = roles is None or any(kind == "base64" for kind, _ in roles.images)
        return TextTable(file, self.header, _MAX_ROW_WITH_IMAGE if in_rows else MAX_TEXT_BYTES)

    def _roles(self, file: Path) -> Roles:
        columns = self._open(file, None).columns()
        if not columns:  # an empty or unreadable file
            return Roles([], [])
        return self.roles(columns, str(file) if file.suffix.lower() == ".parquet" else f"{file}:1")


def _as_written(number: str, row: Cells) -> tuple[str, Cells]:
    """The key and the cells of a row, which has the columns `key` and `meta` if dcclip wrote it."""
    if isinstance(row, Drop) or not {"key", "meta"} <= row.keys():
        return number, row
    key, meta = str(row.pop("key")), row.pop("meta")
    try:
        meta = json.loads(meta or "{}")
    except (TypeError, ValueError, RecursionError) as error:
        return key, Drop("row-not-json", f"meta: {str(error)[:200]}")
    return key, {**meta, **row} if isinstance(meta, dict) else Drop("row-not-json", "meta is not a JSON object")


class HubSource(ColumnOptions):
    """One split of a data set on the Hugging Face hub, or in a folder written by `save_to_disk`.

    Code of the data set is never executed. Images are taken as files, undecoded. The whole split of a hub data set is
    downloaded into the cache of `datasets` first.
    """

    kind: Literal["hub"] = "hub"
    path: str = Field(description="A hub name like ORG/NAME, or a folder like ./saved")
    config: str | None = Field(None, description="Configuration of the data set, if it has several")
    split: str = Field("train", description="Split of the data set")
    revision: str | None = Field(None, description="Commit, tag or branch on the hub; only a commit never changes")

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` rows. Raises DcclipError where the data set, the split or a column is missing."""
        data = self._open()
        self.roles(data.column_names, self.path)
        return index_slices(data.num_rows, size)

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with their row number as key, counted from 0 as in `datasets`."""
        from datasets import config

        data = self._open()
        rows = _dataset_rows(data.with_format("arrow"), part["first"], part["last"])
        # Image paths may lead into a local data set's own folder, or into the cache of `datasets`.
        folder = Path(self.path) if os.path.isdir(self.path) else Path(config.HF_DATASETS_CACHE)
        return self.candidates(rows, self.roles(data.column_names, self.path), Folder(folder, self.allow_outside))

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
            what = f"rows {start} to {end - 1} can't be read: {str(error)[:200]}"
            yield str(next(done)), Drop("table-unreadable", what)
