"""Pairs as Chinese-CLIP's data sets ship (MUGE, Flickr30k-CN): images in base64, captions in JSON lines."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from dcclip_cli.collect.candidate import Candidate, Drop, Slice
from dcclip_cli.collect.sources.base import (
    HINT,
    MAX_TEXT_BYTES,
    Fault,
    SourceOptions,
    Told,
    by_language,
    files_of,
    place_in,
)
from dcclip_cli.collect.sources.columns import from_base64
from dcclip_cli.collect.sources.lines import Row, line_cuts, lines
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.table import MAX_IMAGE_BYTES
from dcclip_cli.errors import DcclipError

_IMAGES, _TEXTS = "_imgs.tsv", "_texts.jsonl"
_LIMIT = MAX_IMAGE_BYTES * 4 // 3 + 1_000  # base64 takes four bytes for three


class Base64Source(SourceOptions):
    """`train_imgs.tsv`, lines of NUMBER<TAB>BASE64, with `train_texts.jsonl` beside it.

    A line of the latter is `{"text_id": 1, "text": "...", "image_ids": [NUMBER, ...]}`. Every text of an image becomes
    its caption; an image has none where the texts aren't published, as in MUGE's test split.
    """

    kind: Literal["base64"] = "base64"
    path: Path = Field(description="A file SPLIT_imgs.tsv, a folder of them, or a pattern like ./muge/*_imgs.tsv")
    language: Told = Field("caption", description="Language of the texts; `caption`: told by their script")

    def slices(self, size: int) -> list[Slice]:
        """Runs of `size` images. Raises DcclipError where a file of texts is missing."""
        found = []
        for file in self._images():
            if not _texts_file(file).is_file():
                what = f"{file} has no {_texts_file(file).name} beside it"
                raise DcclipError(what, "fetch that too: it holds the captions")
            with file.open("rb") as stream:
                for cut in line_cuts(stream, size):
                    part = {"file": str(file), "start": cut.start, "end": cut.end, "number": cut.number}
                    found.append(Slice(part, cut.lines))
        return found

    def read(self, part: Mapping[str, Any]) -> Iterator[Candidate]:
        """Candidates named after their image's number, or the line where that can't be read.

        Lines of texts that can't be read come with the first slice.
        """
        file = Path(part["file"])
        place = place_in(self.path, file)
        wanted = {number for row in _rows(file, part) if (number := _number(row))}
        texts: dict[str, list[tuple[Told, str]]] = defaultdict(list)
        # Broken lines are looked for once.
        for line, said in _texts(_texts_file(file), wanted if part["start"] else None):
            if isinstance(said, _Text):
                for number in wanted.intersection(said.images):
                    texts[number].append((self.language, said.text))
            else:
                yield Candidate(Pair(f"{place}{_texts_file(file).name}:{line}", b""), said)
        for row in _rows(file, part):
            number = _number(row)
            pair = Pair(f"{place}{number or f'line {row.number}'}", b"", **by_language(texts.get(number or "", [])))
            try:
                yield Candidate(replace(pair, image=_image(row)))
            except Fault as fault:
                yield Candidate(pair, fault.drop)

    def _images(self) -> list[Path]:
        found = [file for file in files_of(self.path, (".tsv",)) if file.name.endswith(_IMAGES)]
        if not found:
            raise DcclipError(f"{self.path} holds no file that ends in {_IMAGES}", HINT)
        return found


_IMAGE_IDS = re.compile(rb'"image_ids": *\[([^]]*)\]')
_NUMBER = re.compile(rb'[^", ]+')


class _Text(NamedTuple):
    text: str
    images: list[str]


def _texts_file(images: Path) -> Path:
    return images.with_name(images.name.removesuffix(_IMAGES) + _TEXTS)


def _rows(file: Path, part: Mapping[str, Any]) -> Iterator[Row]:
    with file.open("rb") as stream:
        stream.seek(part["start"])
        for row in lines(stream, _LIMIT, part["number"]):
            if row.start >= part["end"]:
                return
            if row.content is None or row.content.strip():
                yield row


def _number(row: Row) -> str | None:
    """The image's number, or whatever name it has; None where the row has none."""
    head, tab, _ = (row.content or b"").partition(b"\t")
    return head.decode("utf-8", "replace").strip() or None if tab and len(head) < 1_000 else None


def _image(row: Row) -> bytes:
    if row.content is None:
        raise Fault("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
    if _number(row) is None:
        raise Fault("row-malformed", f"no image's number, tab and base64: starts with {row.content[:24]!r}")
    return from_base64(row.content.partition(b"\t")[2])


def _texts(file: Path, wanted: Collection[str] | None) -> Iterator[tuple[int, _Text | Drop]]:
    """Every text with the numbers of its images, or what is wrong with its line; or only the texts `wanted`."""
    numbers = {number.encode() for number in wanted or ()}
    with file.open("rb") as stream:
        for row in lines(stream, MAX_TEXT_BYTES):
            if row.content is None:
                if wanted is None:
                    yield row.number, Drop("captions-bytes", f"more than {MAX_TEXT_BYTES:,} bytes")
                continue
            # Looking before parsing is four times as fast, and every slice looks at every line.
            lists = _IMAGE_IDS.findall(row.content) if wanted is not None else ()
            unwanted = lists and all(numbers.isdisjoint(_NUMBER.findall(one)) for one in lists)
            if unwanted or not row.content.strip():
                continue
            try:
                said = json.loads(row.content.decode("utf-8-sig"))
                text, images = said["text"], said.get("image_ids") or []
                if not isinstance(text, str) or not isinstance(images, list):
                    raise ValueError("`text` has to be a text, `image_ids` a list")
                yield row.number, _Text(text, list(map(str, images)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if wanted is None:
                    yield row.number, Drop("captions-unreadable", f"{type(error).__name__}: {str(error)[:200]}")
