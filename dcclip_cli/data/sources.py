"""Where do raw pairs come from? One class per kind of source, and their union, which is the registry of sources.

A source reads and nothing more: what it can't read becomes a candidate with a fault, never an exception; only a source
that isn't there at all raises. Images are given as the file's bytes, captions as they stand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import Field

from dcclip_cli.data.filters import Drop, language_of
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.data.table import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, open_pairs
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import Options

Told = Literal["zh", "en", "caption"]  # a caption's language, or that its script has to tell
TOLD: tuple[Told, ...] = ("zh", "en", "caption")
MAX_TEXT_BYTES = 1_000_000  # of a caption file, or of a row in a table
_HINT = "check the path; in a recipe it is relative to the recipe's folder"


@dataclass(frozen=True)
class Candidate:
    """A pair as the source has it and what already went wrong with it.

    Its key says where in the source it stands: a path, a line number, or the key it had before.
    """

    pair: Pair
    fault: Drop | None = None


@dataclass(frozen=True)
class Reading:
    """An opened source: about how many candidates it has, and the candidates, to be read once."""

    total: int
    candidates: Iterator[Candidate]


class SourceOptions(Options):
    """What every source has."""

    path: Path = Field(description="The folder or file to read")
    name: str | None = Field(None, description="Goes into each pair's metadata; the path's last part if left out")
    licence: str | None = Field(None, description="Licence of the pairs; goes into each pair's metadata")

    def open(self) -> Reading:
        """The source's candidates, in an order that depends on nothing but the data. Raises DcclipError if absent."""
        raise NotImplementedError


class FolderSource(SourceOptions):
    """A folder, at any depth, of images with caption files beside them.

    For NAME.jpg the captions are NAME.json (`zh` and `en`, a text or a list of texts each; its other keys become
    metadata) and any of NAME.zh.txt, NAME.en.txt and NAME.txt, one caption a line; in NAME.txt the script of each line
    tells its language.
    """

    kind: Literal["folder"] = "folder"
    allow_outside: bool = Field(False, description="Follow symbolic links that lead out of the folder")

    def open(self) -> Reading:
        if not self.path.is_dir():
            raise DcclipError(f"{self.path} is not a folder", _HINT)
        images = sorted(path for path in self.path.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        folder = _Folder(self.path, self.allow_outside)
        return Reading(len(images), (self._candidate(path, folder) for path in images))

    def _candidate(self, path: Path, folder: _Folder) -> Candidate:
        pair = Pair(str(path.relative_to(self.path)), b"")
        try:
            captions, meta = _caption_files(path, folder)
            pair = replace(pair, **_by_language(captions), meta=meta)
            return Candidate(replace(pair, image=folder.read(path, MAX_IMAGE_BYTES, "image")))
        except _Fault as fault:
            return Candidate(pair, fault.drop)


class TsvSource(SourceOptions):
    """A table of tab-separated columns in UTF-8 with a header line; cells hold no tabs, quotes mean nothing.

    One column names the image file, relative to the table's folder. Columns that hold no captions become metadata.
    """

    kind: Literal["tsv"] = "tsv"
    image: str = Field("image", description="The column with the image's path")
    zh: str | None = Field(None, description="The column with Chinese captions")
    en: str | None = Field(None, description="The column with English captions")
    caption: str | None = Field(None, description="A column with captions in either language, told by their script")
    allow_outside: bool = Field(False, description="Read images outside the table's folder")

    def open(self) -> Reading:
        if not self.path.is_file():
            raise DcclipError(f"{self.path} is not a file", _HINT)
        with self.path.open("rb") as stream:
            header, columns = self._header(stream)
            rows = sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))
        return Reading(rows, self._candidates(header, columns))

    def _header(self, stream: BinaryIO) -> tuple[list[str], dict[Told, str]]:
        try:
            line = stream.readline(MAX_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            hint = f"convert it with: iconv -f GB18030 -t UTF-8 {self.path} > utf8.tsv"
            raise DcclipError(f"{self.path} is not in UTF-8", hint) from None
        header = [name.strip() for name in line.split("\t")]
        named = {told: column for told in TOLD if (column := getattr(self, told))}
        # Unless the recipe names caption columns, those that bear the fields' own names are taken.
        columns = named or {told: told for told in TOLD if told in header}
        missing = [column for column in (self.image, *columns.values()) if column not in header]
        if missing or not columns:
            what = f"no column {' or '.join(missing)}" if missing else "no column zh, en or caption"
            raise DcclipError(
                f"{self.path}:1: {what} (found: {', '.join(header)[:200]})",
                "name the table's columns in the recipe, like: {kind: tsv, path: ..., image: file, zh: title}",
            )
        return header, columns

    def _candidates(self, header: list[str], columns: dict[Told, str]) -> Iterator[Candidate]:
        folder = _Folder(self.path.parent, self.allow_outside)
        with self.path.open("rb") as stream:
            stream.readline(MAX_TEXT_BYTES)
            for number, line in enumerate(_lines(stream), start=2):
                if line is None or line.strip(b"\r\n"):
                    yield self._candidate(str(number), line, header, columns, folder)

    def _candidate(
        self, key: str, line: bytes | None, header: list[str], columns: dict[Told, str], folder: _Folder
    ) -> Candidate:
        pair = Pair(key, b"")
        try:
            row = dict(zip(header, _cells(line, len(header)), strict=True))
            captions = [(told, row[column]) for told, column in columns.items()]
            meta = {name: cell for name, cell in row.items() if name not in columns.values()}
            pair = replace(pair, **_by_language(captions), meta=meta)
            image = folder.read(self.path.parent / row[self.image], MAX_IMAGE_BYTES, "image")
            return Candidate(replace(pair, image=image))
        except _Fault as fault:
            return Candidate(pair, fault.drop)


class PairsSource(SourceOptions):
    """Pairs in dcclip's own form: a Parquet file, a WebDataset tar, or a folder of tars such as `collect` leaves."""

    kind: Literal["pairs"] = "pairs"

    def open(self) -> Reading:
        table = open_pairs(self.path)
        return Reading(len(table), (Candidate(pair) for pair in table))


class _Fault(Exception):
    """Ends the reading of one candidate."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.drop = Drop(reason, detail)


class _Folder:
    """The folder that a source's files are in; a path or a link that leads out of it is a fault unless allowed."""

    def __init__(self, path: Path, allow_outside: bool) -> None:
        self._path = path
        self._inside = None if allow_outside else path.resolve()

    def read(self, path: Path, limit: int, what: str) -> bytes:
        """A file's bytes. Faults: `WHAT-outside`, `WHAT-missing`, or `WHAT-bytes` where there are more than `limit`."""
        name = os.path.relpath(path, self._path)
        try:
            if self._inside and not path.resolve().is_relative_to(self._inside):
                raise _Fault(f"{what}-outside", f"{name} is outside the source's folder (allow_outside: false)")
            if not path.is_file():
                raise _Fault(f"{what}-missing", f"{name} is not a file")
            with path.open("rb") as stream:
                content = stream.read(limit + 1)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # ValueError: NUL in the name; RuntimeError: links in a loop
            raise _Fault(f"{what}-missing", f"{name}: {getattr(error, 'strerror', None) or error}") from None
        if len(content) > limit:
            raise _Fault(f"{what}-bytes", f"{name} has more than {limit:,} bytes")
        return content


def _caption_files(image: Path, folder: _Folder) -> tuple[list[tuple[Told, str]], dict[str, Any]]:
    """The captions and the metadata in the files beside an image."""
    captions: list[tuple[Told, str]] = []
    record: dict[str, Any] = {}
    told: Told | None
    for suffix, told in ((".json", None), (".zh.txt", "zh"), (".en.txt", "en"), (".txt", "caption")):
        path = image.with_suffix(suffix)
        if not os.path.isfile(path):  # Path.is_file raises on a name that is too long
            continue
        try:
            text = folder.read(path, MAX_TEXT_BYTES, "captions").decode("utf-8-sig")
            if told:
                captions += [(told, line) for line in text.split("\n")]
                continue
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Fault("captions-unreadable", f"{path.name}: {error}") from None
        if not isinstance(record, dict):
            raise _Fault("captions-unreadable", f"{path.name} does not hold a JSON object")
        for language in LANGUAGES:
            captions += [(language, text) for text in _texts(record.pop(language, None) or [], path)]
    return captions, record


def _texts(value: Any, path: Path) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise _Fault("captions-unreadable", f"{path.name} has a caption that is not text")
    return texts


def _by_language(captions: Iterable[tuple[Told, str]]) -> dict[str, Any]:
    """A Pair's `zh` and `en`. A caption of unknown language that is neither becomes English, for a filter to drop."""
    sorted_out: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for told, text in captions:
        found = language_of(text) if told == "caption" else told
        sorted_out["en" if found == "other" else found].append(text)
    return {language: tuple(texts) for language, texts in sorted_out.items()}


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file, None for each that is longer than MAX_TEXT_BYTES, which is passed over unread."""
    while line := stream.readline(MAX_TEXT_BYTES + 1):
        if len(line) <= MAX_TEXT_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_TEXT_BYTES)
        yield None


def _cells(line: bytes | None, columns: int) -> list[str]:
    if line is None:
        raise _Fault("row-malformed", f"more than {MAX_TEXT_BYTES:,} bytes")
    try:
        cells = line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise _Fault("row-malformed", f"not in UTF-8: {error}") from None
    if len(cells) != columns:
        raise _Fault("row-malformed", f"{len(cells)} cells, the header has {columns}")
    return cells


Source = Annotated[FolderSource | TsvSource | PairsSource, Field(discriminator="kind")]
