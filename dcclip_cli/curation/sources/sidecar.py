"""Sources of images with sidecar files of captions that share their name, in folders and in tars."""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import is_listed, read_at
from dcclip_cli.core.options import PathOption
from dcclip_cli.curation.sources.base import (
    HINT,
    TOLD,
    Candidate,
    Place,
    Slice,
    SourceOptions,
    Told,
    by_language,
    files_of,
    key_prefix,
)
from dcclip_cli.data import reading
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop, Fault, Folder, Member

SIDECARS: dict[str, Told | None] = {
    "json": None,
    "zh.txt": "zh",
    "en.txt": "en",
    "txt": "caption",
}  # by suffix
_MEMBERS_TO_COUNT = 200  # of a tar, to estimate how many pairs it has
_AT_A_TIME = 16  # tars that are opened for that: on network storage, each takes its time
_IMAGE = "image"
_Parts = tuple[str, ...]
_Ids = frozenset[tuple[int, int]]  # of the folders above, by device and inode


def sidecar_captions(files: Mapping[str, bytes]) -> dict[str, Any]:
    """`zh`, `en` and `meta` of a Pair from sidecar files, a caption a line, by suffix. Raises
    `Fault`.
    """
    try:
        record = json.loads(_text(files.get("json", b"{}"), "json"))
    except (ValueError, RecursionError) as error:
        raise Fault("captions-unreadable", f"the .json file: {str(error)[:200]}") from None
    if not isinstance(record, dict):
        raise Fault("captions-unreadable", "the .json file does not hold a JSON object")
    captions: list[tuple[Told, str]] = []
    for told in TOLD:
        captions += [
            (told, text)
            for text in reading.texts_of(record.pop(told, None), f"{told} in the .json file")
        ]
    recorded = {text.strip() for _, text in captions}
    for suffix, language in SIDECARS.items():
        if language and suffix in files:
            text = _text(files[suffix], suffix)
            if text.strip() not in recorded:
                captions += [(language, line) for line in text.split("\n")]
    return {**by_language(captions), "meta": reading.plain(record)}


def _text(content: bytes, suffix: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Fault(
            "captions-unreadable", f"the .{suffix} file: {error.reason} at byte {error.start}"
        ) from None


class FolderSource(SourceOptions):
    """A folder of images at any depth, with sidecar files of captions.

    For NAME.jpg these are NAME.json (`zh`, `en` and `caption`, each a string or a list of strings;
    its other keys become metadata) and NAME.zh.txt, NAME.en.txt and NAME.txt with one caption per
    line. The language of captions in `caption` and NAME.txt is detected from their script.
    """

    kind: Literal["folder"] = "folder"
    path: PathOption = Field(description="Folder with the images")

    def slices(self, size: int) -> list[Slice]:
        """Slices of `size` images in the order of their paths, each given by its first and last."""
        if not self.path.is_dir():
            raise DcclipError("{} is not a folder", HINT, self.path)
        paths = (str(PurePath(*parts)) for parts in self._walk())
        parts = iter(lambda: list(islice(paths, size)), [])
        return [Slice({"first": part[0], "last": part[-1]}, len(part)) for part in parts]

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with their image's path in the folder as key."""
        folder = Folder(self.path)
        for parts in self._walk(PurePath(part["first"]).parts, PurePath(part["last"]).parts):
            pair = Pair(str(PurePath(*parts)), b"")
            path = self.path.joinpath(*parts)
            files = {
                suffix: path.with_name(f"{os.path.splitext(path.name)[0]}.{suffix}")
                for suffix in SIDECARS
            }
            try:
                texts = {
                    suffix: folder.read(file, reading.MAX_TEXT_BYTES, "captions")
                    for suffix, file in files.items()
                    if os.path.isfile(file)
                }
                pair = replace(pair, **sidecar_captions(texts))
                yield Candidate(
                    replace(pair, image=folder.read(path, reading.MAX_IMAGE_BYTES, _IMAGE))
                )
            except Fault as fault:
                yield Candidate(pair, fault.drop)

    def _walk(
        self,
        first: _Parts = (),
        last: _Parts | None = None,
        parts: _Parts = (),
        above: _Ids = frozenset(),
    ) -> Iterator[_Parts]:
        """The images in the folder `parts` from `first` to `last`; folders without any of them are
        not opened.
        """
        try:
            status = os.stat(self.path.joinpath(*parts))
            folder_id = (status.st_dev, status.st_ino)
            with os.scandir(self.path.joinpath(*parts)) as scanned:
                entries = sorted(
                    (entry for entry in scanned if is_listed(entry.name)),
                    key=lambda entry: entry.name,
                )
        except OSError:
            # an unreadable folder: there is no image of this name, which becomes a fault
            yield parts
            return
        for entry in () if folder_id in above else entries:  # a link back up would never end
            inside = (*parts, entry.name)
            if inside < first[: len(inside)] or (last is not None and inside > last[: len(inside)]):
                continue
            # isdir also answers where links form a circle.
            if os.path.isdir(entry.path) and not entry.is_symlink():
                yield from self._walk(first, last, inside, above | {folder_id})
            elif os.path.splitext(entry.name)[1].lower() in reading.ALL_IMAGE_SUFFIXES:
                yield inside


class TarsSource(SourceOptions):
    """Tars in the WebDataset layout, as written by img2dataset and dcclip: KEY.jpg with KEY.json,
    KEY.txt, ...

    The record's `zh`, `en` and `caption`, and the lines of KEY.txt, KEY.zh.txt and KEY.en.txt, are
    captions; the other keys of the record are metadata. Files may be in any order. Nothing is
    unpacked: names in a tar are never used as paths, links are never followed, and files with
    other suffixes (.pkl, .npy, .cls, ...) are skipped unread.
    """

    kind: Literal["tars"] = "tars"
    path: PathOption = Field(
        description="A .tar file, a folder of them, or a pattern like ./laion/*.tar"
    )

    def slices(self, size: int) -> list[Slice]:
        """One slice for each tar, whatever `size` is: one shard becomes one shard."""
        files = files_of(self.path, (".tar",))
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            estimates = pool.map(_estimated_pairs, files)
            return [
                Slice({"file": str(file)}, pairs)
                for file, pairs in zip(files, estimates, strict=True)
            ]

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with the keys that they have in the tar. A truncated or damaged tar ends in
        one with a fault.
        """
        file = Path(part["file"])
        prefix = key_prefix(self.path, file)
        samples: dict[
            str, dict[str, Member]
        ] = {}  # by key, then by `image` or the suffix of a sidecar
        faults: dict[str, Drop] = {}
        for member in reading.tar_members(file):
            key, role = _key_and_role(member.name)
            if role is None:
                if member.fault is None or not member.fault.reason.startswith("tar-"):
                    continue
                key = f"@{member.offset}"  # where the tar is damaged
            sample = samples.setdefault(key, {})
            if role:
                sample[role] = member  # of two equal names the later one counts, as when unpacking
            if member.fault:
                faults.setdefault(key, member.fault)
            if member.name.startswith("/") or ".." in member.name.split("/"):
                faults.setdefault(
                    key, Drop("image-outside", f"{member.name[:200]!r} leads out of the tar")
                )
        with file.open("rb") as stream:
            for key, sample in samples.items():
                pair = Pair(f"{prefix}{key}", b"")
                try:
                    if fault := faults.get(key):
                        raise Fault(fault.reason, fault.detail)
                    suffixes = [suffix for suffix in SIDECARS if suffix in sample]
                    texts = {
                        suffix: _bytes(stream, sample[suffix], "captions") for suffix in suffixes
                    }
                    pair = Pair(pair.key, b"", **sidecar_captions(texts))
                    if _IMAGE not in sample:
                        raise Fault("image-missing", "captions without an image next to them")
                    pair = replace(pair, image=_bytes(stream, sample[_IMAGE], _IMAGE))
                    yield Candidate(pair, place=Place(str(file), sample[_IMAGE].offset))
                except Fault as error:
                    yield Candidate(pair, error.drop)


def _estimated_pairs(file: Path) -> int:
    """The number of images in a tar, of a long one extrapolated from its beginning."""
    images = 0
    end = 0
    for member in islice(reading.tar_members(file), _MEMBERS_TO_COUNT):
        images += _key_and_role(member.name)[1] == _IMAGE
        end = member.offset + member.size
    size = file.stat().st_size
    return max(1, round(images * size / end)) if end and size - end > 100_000 else max(1, images)


def _key_and_role(name: str) -> tuple[str, str | None]:
    """`a/cat.zh.txt` -> `a/cat` and `zh.txt`; `cat.JPG` -> `cat` and `image`; None for files that
    are skipped.
    """
    for suffix in SIDECARS:  # json, zh.txt, en.txt before txt
        if name.lower().endswith(f".{suffix}"):
            return name[: -len(suffix) - 1], suffix
    stem, dot, suffix = name.rpartition(".")
    return (
        (stem, _IMAGE) if f"{dot}{suffix}".lower() in reading.ALL_IMAGE_SUFFIXES else (name, None)
    )


def _bytes(stream: Any, member: Member, role: str) -> bytes:
    limit = reading.MAX_IMAGE_BYTES if role == _IMAGE else reading.MAX_TEXT_BYTES
    if member.size > limit:
        raise Fault(f"{role}-bytes", f"{member.name[-200:]} has more than {limit:,} bytes")
    return read_at(stream.fileno(), member.size, member.offset)
