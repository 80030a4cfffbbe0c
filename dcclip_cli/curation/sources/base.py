"""The base class of all sources, with the selection of files and the assignment of captions to
languages.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.options import Options
from dcclip_cli.curation.filters.language import language_of
from dcclip_cli.data.pair import LANGUAGES, Pair
from dcclip_cli.data.reading import Drop

Told = Literal[
    "zh", "en", "caption"
]  # a caption's language, or `caption`: detected from its script
TOLD: tuple[Told, ...] = ("zh", "en", "caption")
HINT = Message("check the path; in a recipe it is relative to the recipe's folder")


@dataclass(frozen=True)
class Slice:
    """A part of one source that one task reads: small enough to be repeated, and the same each
    time it is read.
    """

    part: Mapping[
        str, Any
    ]  # what the source needs to find it, such as a file, a first and a last row; JSON
    estimate: int  # estimated number of candidates, for the progress bar


class Place(NamedTuple):
    """Where an image's bytes are in a file of a source, which is not copied then until its shard
    is written.
    """

    file: str
    offset: int


@dataclass(frozen=True)
class Candidate:
    """A pair as a source has it, and why it cannot be read if so.

    The pair's key is its position in the source: a path, a line number, or the key it had before.
    If `url` is given, the image is still to be downloaded, and `pair.image` is empty. `place` is
    given if a local file has the image. `names_class`: the captions are the name of the image's
    class, which many images have and the user chose, so nothing drops them.
    """

    pair: Pair
    fault: Drop | None = None
    url: str | None = None
    place: Place | None = None
    names_class: bool = False


class SourceOptions(Options):
    """Base class of sources. A source is divided into slices, and each slice is read
    independently.

    A source only reads. A candidate that cannot be read has a fault and is no exception; only a
    source that is absent, or has another format, raises. Images are the file's bytes, captions are
    unchanged; blank ones are left out.
    """

    name: str | None = Field(
        None, description="Source name in each pair's metadata; default: last part of the path"
    )
    license: str | None = Field(
        None, description="License of the pairs, added to each pair's metadata"
    )

    @property
    def label(self) -> str:
        """The source's name, or the last part of its path."""
        return self.name or self._place.rstrip("/").rpartition("/")[2] or self._place

    @property
    def _place(self) -> str:
        return str(getattr(self, "path", ""))

    def slices(self, size: int) -> list[Slice]:
        """Slices of about `size` candidates, the same each time. Raises DcclipError if the source
        is absent.
        """
        raise NotImplementedError

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """The candidates of one slice, in an order that depends on the data only; one at a time is
        in memory.
        """
        raise NotImplementedError


def index_slices(total: int, size: int) -> list[Slice]:
    """Slices of `size` numbered items, from `first` up to but not including `last`."""
    return [
        Slice({"first": at, "last": min(at + size, total)}, min(size, total - at))
        for at in range(0, total, size)
    ]


def files_of(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """A file, a folder's files with one of the suffixes (not deeper), or a pattern's matches.
    Raises DcclipError.

    In a folder without such files, those of the training split in the hub's layouts are taken:
    `data/train-*` of a repository, `default/train/*` of its conversion to Parquet.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        files = _files_in(path, suffixes) or _training_files(path, suffixes)
    elif glob.has_magic(str(path)):
        files = sorted(
            Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)
        )
    else:
        raise DcclipError("{} does not exist", HINT, path)
    if files:
        return files

    message = Message("{} contains no file with the suffix {}", path, " or ".join(suffixes))
    deeper = next((file for file in path.rglob("*") if file.suffix.lower() in suffixes), None)
    if deeper is None:
        raise DcclipError(message, HINT)
    raise DcclipError(message, "its subfolder {} contains such files: use that path", deeper.parent)


def _files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.is_file()
    )


def _training_files(repository: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of the training split in a folder that `hf download` wrote; those of all splits if
    none is named.
    """
    for layout in ("data", "default/train"):
        folder = repository / layout
        if folder.is_dir():
            files = _files_in(folder, suffixes)
            return [file for file in files if file.name.startswith("train-")] or files
    return []


def key_prefix(path: Path, file: Path) -> str:
    """What a candidate's key begins with if the source has several files: `FILE:`, relative to the
    source's path.
    """
    if file == path:
        return ""
    fixed = path
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return f"{os.path.relpath(file, fixed)}:"


def by_language(captions: Iterable[tuple[Told, str]]) -> dict[str, Any]:
    """`zh` and `en` of a Pair. A caption detected as neither is taken for English, which a filter
    will drop.
    """
    texts_by_language: dict[str, list[str]] = {name: [] for name in LANGUAGES}
    for told, text in captions:
        if not text.strip():
            continue
        # Only the beginning, as filters read no more: the script of a book's first pages is that
        # of the book.
        language = language_of(text[:10_000]) if told == "caption" else told
        texts_by_language["en" if language == "other" else language].append(text)
    return {name: tuple(texts) for name, texts in texts_by_language.items()}
