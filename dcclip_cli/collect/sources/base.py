"""What do all sources share? Options, limits on bytes, safe reading of files, and how captions find their language."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.collect.candidate import Candidate, Drop, Slice
from dcclip_cli.collect.rules.language import language_of
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.data.table import IMAGE_SUFFIXES
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import Options

Told = Literal["zh", "en", "caption"]  # a caption's language, or that its script has to tell
TOLD: tuple[Told, ...] = ("zh", "en", "caption")
MAX_TEXT_BYTES = 1_000_000  # of a caption file, of a row in a table, of the record beside an image
MAX_DEPTH = 32  # of lists in lists in metadata
HINT = "check the path; in a recipe it is relative to the recipe's folder"
# What someone meant as a picture. Those that no recipe keeps are read all the same, so that their drop is counted.
PICTURE_SUFFIXES = (
    *IMAGE_SUFFIXES,
    *(".jfif", ".jpe", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".avif", ".heic", ".jp2", ".ico"),
)


class SourceOptions(Options):
    """What every source has: it is cut into slices, and each slice is read by itself.

    A source reads and nothing more: what it can't read becomes a candidate with a fault, never an exception; only a
    source that isn't there, or isn't what it was said to be, raises. Images are given as the file's bytes, captions as
    they stand, blank ones left out.
    """

    name: str | None = Field(None, description="Goes into each pair's metadata; the path's last part if left out")
    licence: str | None = Field(None, description="Licence of the pairs; goes into each pair's metadata")

    @property
    def label(self) -> str:
        """The source's name, or the last part of its path."""
        return self.name or self._place.rstrip("/").rpartition("/")[2] or self._place

    @property
    def _place(self) -> str:
        return str(getattr(self, "path", ""))

    def slices(self, size: int) -> list[Slice]:
        """The source in parts of about `size` candidates, the same each time. Raises DcclipError if it is absent."""
        raise NotImplementedError

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """The candidates of one slice, in an order that depends on nothing but the data, one at a time in memory."""
        raise NotImplementedError


class Fault(Exception):
    """Ends the reading of one candidate."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.drop = Drop(reason, detail)


class Folder:
    """Reads files, of bounded size, that lie inside one folder unless `allow_outside`."""

    def __init__(self, path: Path, allow_outside: bool) -> None:
        self.path = path
        self._inside = None if allow_outside else path.resolve()

    def read(self, path: Path, limit: int, what: str) -> bytes:
        """A file's bytes. Faults: `WHAT-outside`, `WHAT-missing`, or `WHAT-bytes` where there are more than `limit`."""
        try:
            name = os.path.relpath(path, self.path)
            if self._inside and not path.resolve().is_relative_to(self._inside):
                raise Fault(f"{what}-outside", f"{name} is outside the source's folder (allow_outside: false)")
            if not path.is_file():
                raise Fault(f"{what}-missing", f"{name} is not a file")
            with path.open("rb") as stream:
                content = stream.read(limit + 1)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # NUL in the name: ValueError, links in a loop: the last
            said = getattr(error, "strerror", None) or error
            raise Fault(f"{what}-missing", f"{str(path)[:200]}: {said}") from None
        if len(content) > limit:
            raise Fault(f"{what}-bytes", f"{name} has more than {limit:,} bytes")
        return content


def index_slices(total: int, size: int) -> list[Slice]:
    """`size` at a time of what can be asked for by number: from `first` up to but not including `last`."""
    return [Slice({"first": at, "last": min(at + size, total)}, min(size, total - at)) for at in range(0, total, size)]


def files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file, the files in a folder (not deeper) that end so, or a pattern's matches; sorted. Raises DcclipError."""
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
    elif glob.has_magic(str(path)):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match))
    else:
        raise DcclipError(f"{path} does not exist", HINT)
    if not found:
        raise DcclipError(f"{path} holds no file that ends in {' or '.join(suffixes)}", HINT)
    return found


def place_in(path: Path, file: Path) -> str:
    """What comes before a candidate's key to say in which of the source's files it stands; nothing if there is one."""
    if file == path:
        return ""
    fixed = path
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return f"{os.path.relpath(file, fixed)}:"


def by_language(captions: Iterable[tuple[Told, str]]) -> dict[str, Any]:
    """A Pair's `zh` and `en`. A caption of unknown language that is neither becomes English, for a rule to drop."""
    sorted_out: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for told, text in captions:
        if not text.strip():
            continue
        # Only as far as a rule would read: the script of a book's first pages is that of the book.
        found = language_of(text[:10_000]) if told == "caption" else told
        sorted_out["en" if found == "other" else found].append(text)
    return {language: tuple(texts) for language, texts in sorted_out.items()}


def texts_of(value: Any, where: str) -> list[str]:
    """Captions given as a text, a list of texts or nothing. Faults: `captions-unreadable`, `captions-bytes`."""
    texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
    texts = [text for text in texts if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise Fault("captions-unreadable", f"{where} has a caption that is not text")
    if sum(map(len, texts)) > MAX_TEXT_BYTES:
        raise Fault("captions-bytes", f"{where} has captions of more than {MAX_TEXT_BYTES:,} characters")
    return texts


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON can hold it: no bytes, no NaN, no object that is not a text, number, list or mapping."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH or isinstance(value, bytes | bytearray | memoryview):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    return str(value)
