"""Readers of third-party caption files: COCO and Flickr30k as text or JSON, Chinese-CLIP's base64
and JSON lines.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dcclip_cli.data import reading

MAX_JSON_BYTES = 1_000_000_000  # Karpathy's COCO has 144 MB
_COCO = re.compile(r"COCO_(?:train|val|test)\d{4}_(?=\d{12}$)")


class Named(NamedTuple):
    """An image that a caption file names, its whole record, and a fault where the record cannot be
    read.
    """

    name: str
    record: dict[str, Any]
    fault: reading.Drop | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """The fields of the record other than captions."""
        spent = ("caption", "sentences", "sentids")
        return {key: reading.plain(value) for key, value in self.record.items() if key not in spent}


def identity(name: str) -> str:
    """An image's name without what differs between files: `COCO_val2014_000000000042.jpg` is
    `000000000042`.
    """
    stem, suffix = os.path.splitext(name)
    folder, slash, last = (
        stem if suffix.lower() in reading.ALL_IMAGE_SUFFIXES else name
    ).rpartition("/")
    return folder + slash + _COCO.sub("", last)


class Places:
    """Finds images by the names that caption files have for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = reading.Folder(folder)
        self._within = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]

    def find(self, name: str) -> Path | None:
        """The image's file: in the folder or one level deeper, with or without its suffix."""
        endings = [""]
        if os.path.splitext(name)[1].lower() not in reading.ALL_IMAGE_SUFFIXES:
            endings = [
                *reading.ALL_IMAGE_SUFFIXES,
                *map(str.upper, reading.ALL_IMAGE_SUFFIXES[:2]),
                "",
            ]
        names = [name + ending for ending in endings] + [
            identity(name) + suffix for suffix in reading.ALL_IMAGE_SUFFIXES[:3]
        ]
        paths = (
            Path(folder, name) for folder in self._within for name in names if "\0" not in name
        )
        return next(filter(os.path.isfile, paths), None)

    def read(self, name: str) -> bytes:
        """The image's bytes. Faults as those of Folder."""
        return self._folder.read(
            self.find(name) or self._folder.path / name, reading.MAX_IMAGE_BYTES, "image"
        )


def names_in(path: Path) -> Iterator[Named]:
    """The images that the file names, in order, with repetitions. An unreadable entry has a fault."""
    if path.suffix.lower() != ".json":
        yield from (
            Named(name, {}, text if isinstance(text, reading.Drop) else None)
            for name, text in _text_rows(path)
        )
        return
    try:
        for number, (_, item) in enumerate(json_items(path, ("images", ""))):
            if isinstance(item, dict) and (name := _name(item)):
                yield Named(name, item)
            else:
                yield Named(
                    f"{path.name}:{number}",
                    {},
                    reading.Drop("row-malformed", "an image without a name"),
                )
    except (ValueError, RecursionError) as error:
        yield Named(
            path.name, {}, reading.Drop("captions-unreadable", f"{path.name}: {str(error)[:200]}")
        )


def captions_in(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    """(identity, caption) for each caption of the images `wanted`, in the order of the file."""
    if path.suffix.lower() != ".json":
        for name, text in _text_rows(path):
            if isinstance(text, str) and (image := identity(name)) in wanted:
                yield image, text
        return
    image_by_id: dict[
        Any, str
    ] = {}  # of the images wanted: their id in this file -> their identity
    early = False  # whether there are annotations in front of the images that they name
    for key, item in _objects(path, ("images", "annotations", "")):
        if key == "annotations":
            early |= not image_by_id
            yield from _annotation(item, image_by_id)
        elif (named := _name(item)) is not None and (image := identity(named)) in wanted:
            if isinstance(item.get("id"), int | str):
                image_by_id[item["id"]] = image
            sentences = item["sentences"] if isinstance(item.get("sentences"), list) else []
            raw = [sentence.get("raw") for sentence in sentences if isinstance(sentence, dict)]
            yield from ((image, text) for text in (*_texts(item.get("caption")), *_texts(raw)))
    if early and image_by_id:
        for _, item in _objects(path, ("annotations",)):
            yield from _annotation(item, image_by_id)


# ---- text: IMAGE#zhm#0 CAPTION, IMAGE#0<TAB>CAPTION, IMAGE<TAB>CAPTION


def _text_rows(path: Path) -> Iterator[tuple[str, str | reading.Drop]]:
    """(image, caption) of each line, or (line, fault)."""
    with path.open("rb") as stream:
        for row in reading.lines(stream, reading.MAX_TEXT_BYTES):
            where = f"{path.name}:{row.number}"
            if row.content is None:
                yield (
                    where,
                    reading.Drop("row-malformed", f"more than {reading.MAX_TEXT_BYTES:,} bytes"),
                )
                continue
            try:
                line = row.content.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                yield (
                    where,
                    reading.Drop(
                        "row-malformed", f"not in UTF-8: {error.reason} at byte {error.start}"
                    ),
                )
                continue
            # Names may contain a space where a tab ends them.
            head, caption = (*line.split("\t" if "\t" in line else None, maxsplit=1), "", "")[:2]
            name = head.partition("#")[0]
            if name and caption.strip():
                yield name, caption.strip()
            elif line:
                yield (
                    where,
                    reading.Drop("row-malformed", f"no image and caption in {line[:100]!r}"),
                )


# ---- JSON: COCO's {images, annotations}, Karpathy's {images: [{sentences}]}, BLIP's [{image,
# caption}]


def _name(image: dict[str, Any]) -> str | None:
    name = image.get("file_name") or image.get("image")
    if not name and isinstance(image.get("filename"), str):
        name = os.path.join(str(image.get("filepath") or ""), image["filename"])
    return name if isinstance(name, str) and name else None


def _annotation(item: dict[str, Any], image_by_id: dict[Any, str]) -> Iterator[tuple[str, str]]:
    number = item.get("image_id")
    if isinstance(number, int | str) and number in image_by_id:
        yield from ((image_by_id[number], text) for text in _texts(item.get("caption")))


def json_items(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(key, element) for the elements of the lists under `keys` in the file's object, in the order
    of the file.

    If the whole file is a list, its elements have the key "". Raises ValueError, or
    RecursionError, for a file that is not JSON or has more than MAX_JSON_BYTES.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"has {size:,} bytes, more than {MAX_JSON_BYTES:,}: split it, or give lines "
            f"IMAGE<TAB>CAPTION"
        )
    content = json.loads(path.read_bytes())
    lists = {"": content} if isinstance(content, list) else content
    if not isinstance(lists, dict):
        raise ValueError("is neither a JSON object nor a list")
    for key, elements in lists.items():
        if key in keys and isinstance(elements, list):
            yield from ((key, element) for element in elements)


def _objects(path: Path, keys: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in lists; none of a file that is not JSON, which `names_in` reports."""
    with suppress(ValueError, RecursionError):
        yield from ((key, item) for key, item in json_items(path, keys) if isinstance(item, dict))


def _texts(value: Any) -> list[str]:
    try:
        return reading.texts_of(value, "caption")
    except reading.Fault:
        return []  # its image has no caption then, and is counted for that


# ---- Chinese-CLIP's data sets: SPLIT_imgs.tsv with images in base64, SPLIT_texts.jsonl

IMAGES = "_imgs.tsv"
_TEXTS = "_texts.jsonl"
_LIMIT = reading.MAX_IMAGE_BYTES * 4 // 3 + 1_000  # base64 takes four bytes for three
_IMAGE_IDS = re.compile(rb'"image_ids": *\[([^]]*)\]')
_NUMBER = re.compile(rb'[^", ]+')


class Text(NamedTuple):
    """A text and the ids of the images that it describes."""

    text: str
    images: list[str]


def texts_file(images: Path) -> Path:
    return images.with_name(images.name.removesuffix(IMAGES) + _TEXTS)


def image_rows(file: Path, part: Mapping[str, Any]) -> Iterator[reading.Row]:
    """The lines that begin in bytes `start` to `end`, without blank ones; the first is line
    `number` of the file.
    """
    with file.open("rb") as stream:
        stream.seek(part["start"])
        for row in reading.lines(stream, _LIMIT, part["number"]):
            if row.start >= part["end"]:
                return
            if row.content is None or row.content.strip():
                yield row


def number_of(row: reading.Row) -> str | None:
    """The image's id, usually a number; None where the row has none."""
    head, tab, _ = (row.content or b"").partition(b"\t")
    return head.decode("utf-8", "replace").strip() or None if tab and len(head) < 1_000 else None


def image_of(row: reading.Row) -> bytes:
    """The image's bytes. Faults: `image-bytes`, `row-malformed`, `image-base64`."""
    if row.content is None:
        raise reading.Fault("image-bytes", f"more than {reading.MAX_IMAGE_BYTES:,} bytes")
    if number_of(row) is None:
        raise reading.Fault(
            "row-malformed", f"no image's number, tab and base64: starts with {row.content[:24]!r}"
        )
    return reading.from_base64(row.content.partition(b"\t")[2])


def texts_in(
    file: Path, wanted: Collection[str] | None
) -> Iterator[tuple[int, Text | reading.Drop]]:
    """(line, text) for each text about the images `wanted`; with None, all texts, and the fault of
    each bad line.
    """
    numbers = {number.encode() for number in wanted or ()}
    with file.open("rb") as stream:
        for row in reading.lines(stream, reading.MAX_TEXT_BYTES):
            if row.content is None:
                if wanted is None:
                    yield (
                        row.number,
                        reading.Drop(
                            "captions-bytes", f"more than {reading.MAX_TEXT_BYTES:,} bytes"
                        ),
                    )
                continue
            # Looking before parsing is four times as fast, and every slice looks at every line.
            lists = _IMAGE_IDS.findall(row.content) if wanted is not None else ()
            unwanted = lists and all(
                numbers.isdisjoint(_NUMBER.findall(id_list)) for id_list in lists
            )
            if unwanted or not row.content.strip():
                continue
            try:
                record = json.loads(row.content.decode("utf-8-sig"))
                text = record["text"]
                images = record.get("image_ids") or []
                if not isinstance(text, str) or not isinstance(images, list):
                    raise ValueError("`text` has to be a text, `image_ids` a list")
                yield row.number, Text(text, list(map(str, images)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                if wanted is None:
                    yield (
                        row.number,
                        reading.Drop(
                            "captions-unreadable", f"{type(error).__name__}: {str(error)[:200]}"
                        ),
                    )
