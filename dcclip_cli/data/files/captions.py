"""Caption files of third-party data sets: which captions a file gives to which images.

COCO, COCO-CN, Flickr30k and Flickr30k-CN as text or JSON; Chinese-CLIP's data sets with images in base64 on lines.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dcclip_cli.data.files.lines import Row, lines
from dcclip_cli.data.files.reading import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    PICTURE_SUFFIXES,
    Drop,
    Fault,
    Folder,
    from_base64,
    plain,
    texts_of,
)

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


# ---- Chinese-CLIP: SPLIT_imgs.tsv, SPLIT_texts.jsonl

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


# ---- JSON that is too big to be loaded

_CHUNK = 1 << 20
_NUMBER_CUT = "1e-5"  # what is read as 1 while its last digit is not in the window
_SPACE = " \t\r\n"


def json_items(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The elements of the lists under `keys` in the file's object, each with its key, in the order of the file.

    If the whole file is a list, its elements come with the key "". A megabyte is in memory at a time. Raises
    ValueError, or RecursionError, where the file stops being JSON or an element is longer than MAX_TEXT_BYTES.
    """
    with path.open("rb") as stream:
        text = _Text(stream)
        if text.peek() == "[":
            yield from (("", item) for item in text.items() if "" in keys)
            return
        text.take("{")
        while text.peek() != "}":
            key = text.value()
            text.take(":")
            if text.peek() == "[":
                yield from ((key, item) for item in text.items() if key in keys)
            else:
                text.value()
            if text.peek() != "}":
                text.take(",")


class _Text:
    """The text of a file, a window at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._window, self._at, self._ended = "", 0, False
        self._fresh = False  # whether the window was just filled

    def _more(self) -> bool:
        """Make the window longer; whether there was more."""
        if self._ended:
            return False
        chunk = self._stream.read(_CHUNK)
        self._ended, self._fresh = not chunk, bool(chunk)
        self._window, self._at = self._window[self._at :] + self._decoder.decode(chunk, self._ended), 0
        return True

    def peek(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            while self._at < len(self._window) and self._window[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> None:
        """Step over a character, which has to stand next."""
        if self.peek() != character:
            raise ValueError(f"{self.peek() or 'the end'!r} where {character!r} should be")
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._window, self._at)
            except ValueError:
                if len(self._window) - self._at > MAX_TEXT_BYTES or not self._more():
                    raise
                continue
            if end > len(self._window) - len(_NUMBER_CUT) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _block(self) -> list[Any]:
        """All the elements up to the last that ends in the window, or none: five times as fast as one by one.

        What parses as a list is one: a brace in a text, or inside an element, would leave it without its end.
        """
        if not self._fresh:
            return []
        self._fresh = False
        end = self._window.rfind("},", self._at) + 1
        if not end:
            return []
        try:
            found: list[Any] = json.loads(f"[{self._window[self._at : end]}]")
        except ValueError:
            return []
        self._at = end
        return found

    def items(self) -> Iterator[Any]:
        """The elements of the list that begins here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            block = self._block()
            if block:
                yield from block
            else:
                yield self.value()
            if self.peek() == "]":
                break
            self.take(",")
        self.take("]")
