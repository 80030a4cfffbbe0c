"""Which captions does a file give to which images? For files such as COCO, COCO-CN, Flickr30k and Flickr30k-CN have."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dcclip_cli.data.files.fault import Drop, Fault
from dcclip_cli.data.files.json_stream import json_items
from dcclip_cli.data.files.lines import lines
from dcclip_cli.data.files.reading import MAX_TEXT_BYTES, PICTURE_SUFFIXES, Folder, plain, texts_of
from dcclip_cli.data.table import MAX_IMAGE_BYTES

_COCO = re.compile(r"COCO_(?:train|val|test)\d{4}_(?=\d{12}$)")


class Named(NamedTuple):
    """An image that a caption file names, all that it says of it, and what is wrong if its name can't be read."""

    name: str
    record: dict[str, Any]
    fault: Drop | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """What the record says beside captions."""
        spent = ("caption", "sentences", "sentids")
        return {key: plain(value) for key, value in self.record.items() if key not in spent}


def identity(name: str) -> str:
    """What tells that two files mean one image: `COCO_val2014_000000000042.jpg`, or 42 of 2017, is `000000000042`."""
    stem, suffix = os.path.splitext(name)
    folder, slash, last = (stem if suffix.lower() in PICTURE_SUFFIXES else name).rpartition("/")
    return folder + slash + _COCO.sub("", last)


class Places:
    """Finds images by the names that caption files have for them."""

    def __init__(self, folder: Path, allow_outside: bool) -> None:
        self._folder = Folder(folder, allow_outside)
        self._within = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]

    def find(self, name: str) -> Path | None:
        """The file that is meant, wherever it lies."""
        return next((path for path in self._tried(name) if os.path.isfile(path)), None)

    def read(self, name: str) -> bytes:
        """The image's bytes. Faults as those of Folder."""
        tried = self._tried(name)
        path = next((path for path in tried if os.path.isfile(path)), None)
        return self._folder.read(path or self._folder.path / name, MAX_IMAGE_BYTES, "image")  # says what is wrong

    def _tried(self, name: str) -> list[Path]:
        known = os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES
        endings = ("",) if known else (*PICTURE_SUFFIXES, *(suffix.upper() for suffix in PICTURE_SUFFIXES[:2]), "")
        names = [name + ending for ending in endings] + [identity(name) + suffix for suffix in PICTURE_SUFFIXES[:3]]
        return [Path(folder, one) for folder in self._within for one in names if "\0" not in one]


def names_in(path: Path) -> Iterator[Named]:
    """The images that the file names, in order, again and again if it does so. What can't be read has a fault."""
    return _json_names(path) if path.suffix.lower() == ".json" else _text_names(path)


def captions_in(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    """The identities of images, if among those `wanted`, each with a caption; in the order of the file."""
    return _json_captions(path, wanted) if path.suffix.lower() == ".json" else _text_captions(path, wanted)


# ---- text: IMAGE#zhm#0 CAPTION, IMAGE#0<TAB>CAPTION, IMAGE<TAB>CAPTION


def _text_rows(path: Path) -> Iterator[tuple[str, str] | tuple[int, Drop]]:
    with path.open("rb") as stream:
        for row in lines(stream, MAX_TEXT_BYTES):
            if row.content is None:
                yield row.number, Drop("row-malformed", f"more than {MAX_TEXT_BYTES:,} bytes")
                continue
            try:
                line = row.content.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                yield row.number, Drop("row-malformed", f"not in UTF-8: {error.reason} at byte {error.start}")
                continue
            head, caption = _split(line)
            name = head.partition("#")[0]
            if name and caption:
                yield name, caption
            elif line:
                yield row.number, Drop("row-malformed", f"no image and caption in {line[:100]!r}")


def _split(line: str) -> tuple[str, str]:
    head, tab, caption = line.partition("\t")
    # Names may hold a space where a tab ends them.
    return (head, caption.strip()) if tab else (*line.split(maxsplit=1), "", "")[:2]  # type: ignore[return-value]


def _text_names(path: Path) -> Iterator[Named]:
    for name, what in _text_rows(path):
        yield Named(f"{path.name}:{name}", {}, what) if isinstance(what, Drop) else Named(str(name), {})


def _text_captions(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, caption in _text_rows(path):
        if isinstance(name, str) and isinstance(caption, str) and (found := identity(name)) in wanted:
            yield found, caption


# ---- JSON: COCO's {images, annotations}, Karpathy's {images: [{sentences}]}, BLIP's [{image, caption}]


def _json_names(path: Path) -> Iterator[Named]:
    try:
        for number, (_, item) in enumerate(json_items(path, ("images", ""))):
            if isinstance(item, dict) and (name := _name(item)):
                yield Named(name, item)
            else:
                yield Named(f"{path.name}:{number}", {}, Drop("row-malformed", "an image without a name"))
    except (ValueError, RecursionError) as error:
        yield Named(path.name, {}, Drop("captions-unreadable", f"{path.name} breaks off: {str(error)[:200]}"))


def _name(image: dict[str, Any]) -> str | None:
    name = image.get("file_name") or image.get("image")
    if not name and isinstance(image.get("filename"), str):
        name = os.path.join(str(image.get("filepath") or ""), image["filename"])
    return name if isinstance(name, str) and name else None


def _json_captions(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, str]]:
    found: dict[Any, str] = {}  # of the images wanted: their number in this file -> their identity
    waiting = False  # whether there are annotations of images that are only named behind them
    for key, item in _whole(path, ("images", "annotations", "")):
        if key == "annotations":
            waiting |= not found
            yield from _annotation(item, found)
        elif (name := _name(item)) is not None and (image := identity(name)) in wanted:
            if isinstance(item.get("id"), int | str):
                found[item["id"]] = image
            sentences = item.get("sentences")
            raw = [one.get("raw") for one in sentences if isinstance(one, dict)] if isinstance(sentences, list) else []
            yield from ((image, text) for text in (*_texts(item.get("caption")), *_texts(raw)))
    if waiting and found:
        for _, item in _whole(path, ("annotations",)):
            yield from _annotation(item, found)


def _annotation(item: dict[str, Any], found: dict[Any, str]) -> Iterator[tuple[str, str]]:
    number = item.get("image_id")
    if isinstance(number, int | str) and number in found:
        yield from ((found[number], text) for text in _texts(item.get("caption")))


def _whole(path: Path, keys: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in lists, up to where the file breaks off: `names_in` has told that it does."""
    try:
        yield from ((key, item) for key, item in json_items(path, keys) if isinstance(item, dict))
    except (ValueError, RecursionError):
        return


def _texts(value: Any) -> list[str]:
    try:
        return texts_of(value, "caption")
    except Fault:
        return []  # its image has no caption then, and is counted for that
