"""What stands in the files of Chinese-CLIP's data sets: images in base64 on lines, texts in JSON lines beside them?"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dcclip_cli.data.files.fault import Drop, Fault
from dcclip_cli.data.files.lines import Row, lines
from dcclip_cli.data.files.reading import MAX_TEXT_BYTES, from_base64
from dcclip_cli.data.table import MAX_IMAGE_BYTES

IMAGES, _TEXTS = "_imgs.tsv", "_texts.jsonl"
_LIMIT = MAX_IMAGE_BYTES * 4 // 3 + 1_000  # base64 takes four bytes for three
_IMAGE_IDS = re.compile(rb'"image_ids": *\[([^]]*)\]')
_NUMBER = re.compile(rb'[^", ]+')


class Text(NamedTuple):
    """A text and the numbers of the images that it is about."""

    text: str
    images: list[str]


def texts_file(images: Path) -> Path:
    """SPLIT_texts.jsonl beside SPLIT_imgs.tsv."""
    return images.with_name(images.name.removesuffix(IMAGES) + _TEXTS)


def image_rows(file: Path, part: Mapping[str, Any]) -> Iterator[Row]:
    """The lines, blank ones left out, that begin in `start`..`end` (bytes); that at `start` has the number `number`."""
    with file.open("rb") as stream:
        stream.seek(part["start"])
        for row in lines(stream, _LIMIT, part["number"]):
            if row.start >= part["end"]:
                return
            if row.content is None or row.content.strip():
                yield row


def number_of(row: Row) -> str | None:
    """The image's number, or whatever name it has; None where the row has none."""
    head, tab, _ = (row.content or b"").partition(b"\t")
    return head.decode("utf-8", "replace").strip() or None if tab and len(head) < 1_000 else None


def image_of(row: Row) -> bytes:
    """The image's bytes. Faults: `image-bytes`, `row-malformed`, `image-base64`."""
    if row.content is None:
        raise Fault("image-bytes", f"more than {MAX_IMAGE_BYTES:,} bytes")
    if number_of(row) is None:
        raise Fault("row-malformed", f"no image's number, tab and base64: starts with {row.content[:24]!r}")
    return from_base64(row.content.partition(b"\t")[2])


def texts_in(file: Path, wanted: Collection[str] | None) -> Iterator[tuple[int, Text | Drop]]:
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
                yield row.number, Text(text, list(map(str, images)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if wanted is None:
                    yield row.number, Drop("captions-unreadable", f"{type(error).__name__}: {str(error)[:200]}")
