"""Pairs in tars as WebDataset, img2dataset and dcclip itself leave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from dcclip_cli.curation.candidate import Candidate, Drop, Slice
from dcclip_cli.curation.sources.base import SourceOptions, files_of, place_in
from dcclip_cli.curation.sources.beside import BESIDE, captions_beside
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, PICTURE_SUFFIXES, Fault, Member, members
from dcclip_cli.data.pair import Pair

_PEEK = 2_000  # members looked at to tell how many pairs a tar has
_IMAGE = "image"
_Sample = dict[str, Member]  # `image` or a suffix of BESIDE -> the file


class TarsSource(SourceOptions):
    """Tars in which files of one name make a pair: KEY.jpg with KEY.json, KEY.txt, KEY.zh.txt, KEY.en.txt.

    The record's `zh`, `en` and `caption`, and the lines of the texts, are captions; what else the record holds is
    metadata. Files may stand in any order. Nothing is unpacked: the names in a tar are never used as paths, links
    in it are never followed, and files with other suffixes (.pkl, .npy, .cls, ...) are passed over unread.
    """

    kind: Literal["tars"] = "tars"
    path: Path = Field(description="A .tar file, a folder of them, or a pattern like ./laion/*.tar")

    def slices(self, size: int) -> list[Slice]:
        """One slice for each tar, whatever `size` is: shard in, shard out."""
        return [Slice({"file": str(file)}, _about(file)) for file in files_of(self.path, (".tar",))]

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates with the keys that they have in the tar. A cut or broken tar ends in one that says so."""
        file = Path(part["file"])
        place = place_in(self.path, file)
        samples: dict[str, _Sample] = {}
        faults: dict[str, Drop] = {}
        for member in members(file):
            key, role = _key_and_role(member.name)
            if role is None:
                if member.fault is None or not member.fault.reason.startswith("tar-"):
                    continue
                key = f"@{member.offset}"  # where in the tar it breaks off
            sample = samples.setdefault(key, {})
            if role:
                sample[role] = member  # twice the same name: as unpacking does, the later one counts
            if fault := member.fault or _name_fault(member.name):
                faults.setdefault(key, fault)
        with file.open("rb") as stream:
            for key, sample in samples.items():
                pair = Pair(f"{place}{key}", b"")
                try:
                    if fault := faults.get(key):
                        raise Fault(fault.reason, fault.detail)
                    beside = [suffix for suffix in BESIDE if suffix in sample]
                    texts = {suffix: _bytes(stream, sample[suffix], "captions") for suffix in beside}
                    pair = replace(pair, **captions_beside(texts))
                    if _IMAGE not in sample:
                        raise Fault("image-missing", "captions without an image beside them")
                    yield Candidate(replace(pair, image=_bytes(stream, sample[_IMAGE], _IMAGE)))
                except Fault as error:
                    yield Candidate(pair, error.drop)


def _about(file: Path) -> int:
    """How many images a tar has; if it is long, as many as it would have if it went on as it begins."""
    images, end = 0, 0
    for member in islice(members(file), _PEEK):
        images += _key_and_role(member.name)[1] == _IMAGE
        end = member.offset + member.size
    size = file.stat().st_size
    return max(1, round(images * size / end)) if end and size - end > 100_000 else max(1, images)


def _key_and_role(name: str) -> tuple[str, str | None]:
    """`a/cat.zh.txt` -> `a/cat` and `zh.txt`; `cat.JPG` -> `cat` and `image`; None for files that mean nothing here."""
    for suffix in BESIDE:  # json, zh.txt, en.txt before txt
        if name.lower().endswith(f".{suffix}"):
            return name[: -len(suffix) - 1], suffix
    stem, dot, suffix = name.rpartition(".")
    return (stem, _IMAGE) if f"{dot}{suffix}".lower() in PICTURE_SUFFIXES else (name, None)


def _name_fault(name: str) -> Drop | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return Drop("image-outside", f"{name[:200]!r} leads out of the tar")
    return None


def _bytes(stream: Any, member: Member, what: str) -> bytes:
    limit = MAX_IMAGE_BYTES if what == _IMAGE else MAX_TEXT_BYTES
    if member.size > limit:
        raise Fault(f"{what}-bytes", f"{member.name[-200:]} has more than {limit:,} bytes")
    stream.seek(member.offset)
    return bytes(stream.read(member.size))
