"""Where do raw pairs come from? One class per kind of source, and their union, which is the registry of sources.

A source reads and nothing more: what it can't read becomes a candidate with a fault, never an exception; only a source that
isn't there at all raises. Images are given as the file's bytes, captions as they stand.
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
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.table import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, open_pairs
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import Options

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

    path: Path
    name: str | None = Field(None, description="Goes into each pair's metadata; the path's last part if left out")
    licence: str | None = Field(None, description="Licence of the pairs; goes into each pair's metadata")

    def open(self) -> Reading:
        """The source's candidates, in an order that depends on nothing but the data. Raises DcclipError if absent."""
        raise NotImplementedError


class FolderSource(SourceOptions):
    """A folder, at any depth, of images with caption files beside them.

    For NAME.jpg the captions are NAME.json (`zh` and `en`, a text or a list of texts each; its other keys become
    metadata) and any of NAME.zh.txt, NAME.en.txt and NAME.txt, one caption a line; in NAME.txt, a line with Chinese
    characters is Chinese and any other line English.
    """

    kind: Literal["folder"] = "folder"
    allow_outside: bool = Field(False, description="Follow symbolic links that lead out of the folder")

    def open(self) -> Reading:
        if not self.path.is_dir():
            raise DcclipError(f"{self.path} is not a folder", _HINT)
        images = sorted(path for path in self.path.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return Reading(len(images), (self._candidate(path) for path in images))

    def _candidate(self, path: Path) -> Candidate:
        pair = Pair(str(path.relative_to(self.path)), b"")
        root = None if self.allow_outside else self.path
        try:
            zh, en, meta = _caption_files(path, root)
            pair = replace(pair, zh=zh, en=en, meta=meta)
            return Candidate(replace(pair, image=_read_inside(path, root, MAX_IMAGE_BYTES, "image")))
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

    def _header(self, stream: BinaryIO) -> tuple[list[str], dict[str, str]]:
        try:
            line = stream.readline(MAX_TEXT_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError:
            hint = f"convert it with: iconv -f GB18030 -t UTF-8 {self.path} > utf8.tsv"
            raise DcclipError(f"{self.path} is not in UTF-8", hint) from None
        header = [name.strip() for name in line.split("\t")]
        named = {field: column for field in ("zh", "en", "caption") if (column := getattr(self, field))}
        # Unless the recipe names caption columns, those that bear the fields' own names are taken.
        columns = named or {field: field for field in ("zh", "en", "caption") if field in header}
        missing = [column for column in (self.image, *columns.values()) if column not in header]
        if missing or not columns:
            what = f"no column {' or '.join(missing)}" if missing else "no column zh, en or caption"
            raise DcclipError(
                f"{self.path}:1: {what} (found: {', '.join(header)[:200]})",
                "name the table's columns in the recipe, like: {kind: tsv, path: ..., image: file, zh: title}",
            )
        return header, columns

    def _candidates(self, header: list[str], columns: dict[str, str]) -> Iterator[Candidate]:
        with self.path.open("rb") as stream:
            stream.readline(MAX_TEXT_BYTES)
            for number, line in enumerate(_lines(stream), start=2):
                if line is None or line.strip(b"\r\n"):
                    yield self._candidate(str(number), line, header, columns)

    def _candidate(self, key: str, line: bytes | None, header: list[str], columns: dict[str, str]) -> Candidate:
        pair = Pair(key, b"")
        try:
            cells = _cells(line, len(header))
            row = dict(zip(header, cells, strict=True))
            zh, en = _by_script([row[columns["caption"]]] if "caption" in columns else [])
            zh = (*((row[columns["zh"]],) if "zh" in columns else ()), *zh)
            en = (*((row[columns["en"]],) if "en" in columns else ()), *en)
            meta = {name: cell for name, cell in row.items() if name not in columns.values()}
            pair = replace(pair, zh=zh, en=en, meta=meta)
            root = None if self.allow_outside else self.path.parent
            image = _read_inside(self.path.parent / row[self.image], root, MAX_IMAGE_BYTES, "image")
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


def _read_inside(path: Path, root: Path | None, limit: int, what: str) -> bytes:
    """A file's bytes. Faults: `WHAT-outside` (of `root`, links resolved), `WHAT-missing` or `WHAT-bytes` (> limit)."""
    try:
        if root is not None and not path.resolve().is_relative_to(root.resolve()):
            raise _Fault(f"{what}-outside", f"{path} is outside {root}; allow_outside: true in the recipe allows it")
        if not path.is_file():
            raise _Fault(f"{what}-missing", f"{path} is not a file")
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL in the name; RuntimeError: a loop of links
        raise _Fault(f"{what}-missing", f"{path}: {error}") from None
    if len(content) > limit:
        raise _Fault(f"{what}-bytes", f"{path} has more than {limit:,} bytes")
    return content


def _caption_files(image: Path, root: Path | None) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    """The zh captions, the en captions and the metadata in the files beside an image."""
    zh: list[str] = []
    en: list[str] = []
    record: dict[str, Any] = {}
    texts = {suffix: image.with_suffix(suffix) for suffix in (".json", ".zh.txt", ".en.txt", ".txt")}
    for suffix, path in texts.items():
        if not os.path.isfile(path):  # Path.is_file raises on a name that is too long
            continue
        try:
            text = _read_inside(path, root, MAX_TEXT_BYTES, "captions").decode("utf-8-sig")
            if suffix == ".json":
                record = _record(text, path)
                zh += _texts(record.pop("zh", None), path)
                en += _texts(record.pop("en", None), path)
                continue
        except (ValueError, RecursionError) as error:
            raise _Fault("captions-unreadable", f"{path}: {error}") from None
        lines = text.split("\n")
        by_script = _by_script(lines) if suffix == ".txt" else ((), ())
        zh += lines if suffix == ".zh.txt" else by_script[0]
        en += lines if suffix == ".en.txt" else by_script[1]
    return tuple(zh), tuple(en), record


def _record(text: str, path: Path) -> dict[str, Any]:
    record = json.loads(text)
    if not isinstance(record, dict):
        raise _Fault("captions-unreadable", f"{path} does not hold a JSON object")
    return record


def _texts(value: Any, path: Path) -> list[str]:
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise _Fault("captions-unreadable", f"{path}: a caption that is not text")
    return texts


def _by_script(captions: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions of unknown language as (zh, en); the language filter drops what is neither."""
    told = [(caption, language_of(caption)) for caption in captions]
    zh = tuple(caption for caption, language in told if language == "zh")
    return zh, tuple(caption for caption, language in told if language != "zh")


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
