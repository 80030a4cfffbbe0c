"""Pairs in a folder: images with their captions in files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate, Slice
from dcclip_cli.curation.sources.base import HINT, SourceOptions
from dcclip_cli.curation.sources.beside import Beside, captions_beside
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, PICTURE_SUFFIXES, Fault, Folder
from dcclip_cli.data.pair import Pair
from dcclip_cli.errors import DcclipError

_Parts = tuple[str, ...]
_Ids = frozenset[tuple[int, int]]  # of the folders above, by device and inode


class FolderSource(SourceOptions):
    """A folder, at any depth, of images with caption files beside them.

    For NAME.jpg the captions are NAME.json (`zh`, `en` and `caption`, a text or a list of texts each; its other keys
    become metadata) and any of NAME.zh.txt, NAME.en.txt and NAME.txt, one caption a line; in `caption` and NAME.txt
    the script of each tells its language.
    """

    kind: Literal["folder"] = "folder"
    path: Path = Field(description="The folder")
    allow_outside: bool = Field(False, description="Follow symbolic links that lead out of the folder")

    def slices(self, size: int) -> list[Slice]:
        """Runs of `size` images in the order of their paths, each given by its first and last."""
        if not self.path.is_dir():
            raise DcclipError(f"{self.path} is not a folder", HINT)
        found: list[Slice] = []
        first, last, count = "", "", 0
        for parts in self._walk():
            if count == size:
                found.append(Slice({"first": first, "last": last}, count))
                count = 0
            last = str(PurePath(*parts))
            first, count = last if not count else first, count + 1
        return [*found, Slice({"first": first, "last": last}, count)] if count else found

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates named after their image's path in the folder."""
        folder = Folder(self.path, self.allow_outside)
        for parts in self._walk(PurePath(part["first"]).parts, PurePath(part["last"]).parts):
            yield _candidate(self.path.joinpath(*parts), str(PurePath(*parts)), folder)

    def _walk(self, first: _Parts = (), last: _Parts | None = None) -> Iterator[_Parts]:
        """The images from `first` to `last`, looking into no folder that can hold none of them."""
        waiting: list[tuple[_Parts, _Ids | None]] = [((), frozenset())]  # None: an image
        while waiting:
            parts, above = waiting.pop()
            if above is None:
                yield parts
                continue
            try:
                status = os.stat(self.path.joinpath(*parts))
                here = (status.st_dev, status.st_ino)
                if here in above:  # a link back up would never end
                    continue
                found = list(self._entries(parts, above | {here}))
            except OSError:
                yield parts  # can't be looked into: there is no image of this name, which becomes a fault
                continue
            waiting += [
                (inside, ids)
                for inside, ids in sorted(found, key=lambda entry: entry[0], reverse=True)
                if inside >= first[: len(inside)] and (last is None or inside <= last[: len(inside)])
            ]

    def _entries(self, parts: _Parts, above: _Ids) -> Iterator[tuple[_Parts, _Ids | None]]:
        with os.scandir(self.path.joinpath(*parts)) as entries:
            for entry in entries:
                # isdir also answers where links lead in a circle.
                if os.path.isdir(entry.path) and (self.allow_outside or not entry.is_symlink()):
                    yield (*parts, entry.name), above
                elif os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES:
                    yield (*parts, entry.name), None


def _candidate(path: Path, key: str, folder: Folder) -> Candidate:
    pair = Pair(key, b"")
    try:
        captions = captions_beside(_files(path, folder))
        pair = replace(pair, **captions)
        return Candidate(replace(pair, image=folder.read(path, MAX_IMAGE_BYTES, "image")))
    except Fault as fault:
        return Candidate(pair, fault.drop)


def _files(image: Path, folder: Folder) -> Beside:
    """What lies beside an image, by suffix."""
    stem = os.path.splitext(image)[0]
    found = (suffix for suffix in ("json", "zh.txt", "en.txt", "txt") if os.path.isfile(f"{stem}.{suffix}"))
    return {suffix: folder.read(Path(f"{stem}.{suffix}"), MAX_TEXT_BYTES, "captions") for suffix in found}
