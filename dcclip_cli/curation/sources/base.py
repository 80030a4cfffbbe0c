"""What do all sources share? Options, limits on bytes, safe reading of files, and how captions find their language."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate, Slice
from dcclip_cli.curation.filters.language import language_of
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.errors import DcclipError
from dcclip_cli.options import Options

Told = Literal["zh", "en", "caption"]  # a caption's language, or that its script has to tell
TOLD: tuple[Told, ...] = ("zh", "en", "caption")
HINT = "check the path; in a recipe it is relative to the recipe's folder"


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
