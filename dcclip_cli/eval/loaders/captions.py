"""Images with captions, in the files that their authors publish: Flickr30k, COCO, their Chinese kin, XM3600, XTD."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dcclip_cli.data.files.captions import Places, captions_in, identity, names_in
from dcclip_cli.data.files.lines import lines
from dcclip_cli.data.files.reading import MAX_TEXT_BYTES
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.loaders.base import AGAIN, Captioned, Images, Loader, Place, missing, stamp_of

_Captions = dict[str, list[str]]  # an image's name -> its captions
# Patterns of files that hold captions, in the order in which they are looked for. A split is told by the record
# (Karpathy) or by a file of image names beside.
_FILES: dict[str, tuple[str, ...]] = {
    "flickr30k": ("dataset_flickr30k.json", "*karpathy*.json", "*test*.json", "*test*.txt"),
    "flickr30k_cn": ("flickr30kcn_test*.txt", "flickr30k_cn[a_]*test*.txt", "*[tT]est*.txt", "dataset_flickr30k*.json"),
    "coco": ("dataset_coco.json", "*karpathy*.json", "captions_test*.json", "*test*.json"),
    "coco_cn": ("*human-written-caption*.txt", "*[tT]est*caption*.txt", "coco-cn_test*.txt", "*test*.txt"),
}
_ONLY = {"coco_cn": ("coco-cn_test.txt", "*test_imgid*.txt")}  # files that only name the split's images


@dataclass(frozen=True)
class CaptionFiles(Loader):
    """Karpathy's `dataset_NAME.json`, or text with lines `IMAGE#0<TAB>CAPTION`, beside a folder of images."""

    place: Place
    file: Path
    layout = "dataset_NAME.json, or lines IMAGE#0 CAPTION"

    @classmethod
    def find(cls, place: Place) -> CaptionFiles | None:
        only = {file for root in _folders(place) for file in _only(place, root)}
        for pattern in _FILES.get(place.known.name, ()):
            for root in _folders(place):
                for folder in (root, root / "annotations"):
                    if found := [file for file in sorted(folder.glob(pattern)) if file not in only]:
                        return cls(place, found[0])
        return None

    def load(self) -> Captioned:
        names: dict[str, str] = {}  # identity -> name
        only = {
            identity(name) for root in _folders(self.place) for file in _only(self.place, root) for name in _names(file)
        }
        for image in names_in(self.file):
            if image.fault:
                raise DcclipError(f"{self.file}: {image.name}: {image.fault.detail}", AGAIN)
            known = identity(image.name)
            if image.record.get("split", self.place.split) == self.place.split and (not only or known in only):
                names.setdefault(known, image.name)
        if only and (absent := sorted(only - names.keys())):
            raise DcclipError(f"{self.file} has no caption of {absent[0]} ({len(absent)} such images)", AGAIN)
        captions: _Captions = defaultdict(list)
        for known, text in captions_in(self.file, names):
            captions[names[known]].append(text)
        return captioned({name: captions[name] for name in names.values()}, self.place, self.file)


def _folders(place: Place) -> tuple[Path, ...]:
    """The data set's own folders, then those with the same pictures: `_FILES` tells the languages' files apart."""
    return (*place.folders, *place.beside)


def _only(place: Place, root: Path) -> list[Path]:
    """Files of this split's image names, one a line, without captions."""
    files = [file for pattern in _ONLY.get(place.known.name, ()) for file in sorted(root.glob(pattern))]
    return [file for file in files if len(next(iter(_names(file)), "").split()) == 1]


def _names(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text("utf-8-sig", "replace").splitlines() if line.strip()]


@dataclass(frozen=True)
class Xm3600(Loader):
    """Crossmodal-3600: `captions.jsonl`, an object for each image with every language's captions, and `images/`."""

    place: Place
    file: Path
    layout = "captions.jsonl"

    @classmethod
    def find(cls, place: Place) -> Xm3600 | None:
        if place.known.name != "xm3600":
            return None
        files = [root / folder / "captions.jsonl" for root in place.folders for folder in ("", "captions")]
        return next((cls(place, file) for file in files if file.is_file()), None)

    def load(self) -> Captioned:
        found: _Captions = {}
        for number, record in _json_lines(self.file):
            try:
                name, texts = record["image/key"], record[self.place.language]["caption"]
            except (KeyError, TypeError):
                what = f"{self.file}:{number} has no image/key, or no captions in {self.place.language}"
                raise DcclipError(what, AGAIN) from None
            found.setdefault(str(name), []).extend(str(text) for text in texts)
        return captioned(found, self.place, self.file)


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as stream:
        for row in lines(stream, MAX_TEXT_BYTES):
            if row.content is not None and not row.content.strip():
                continue
            try:
                record = json.loads(row.content or b"")
            except (ValueError, RecursionError) as error:
                raise DcclipError(f"{file}:{row.number} is not JSON: {str(error)[:100]}", AGAIN) from None
            yield row.number, record if isinstance(record, dict) else {}


@dataclass(frozen=True)
class Xtd(Loader):
    """XTD-10: `test_image_names.txt`, and line by line as many captions in `test_1kcaptions_LANGUAGE.txt`."""

    place: Place
    captions: Path
    layout = "test_1kcaptions_zh.txt"

    @classmethod
    def find(cls, place: Place) -> Xtd | None:
        if place.known.name != "xtd":
            return None
        name = f"test_1kcaptions_{place.language}.txt"
        files = [root / folder / name for root in place.folders for folder in ("", "XTD10")]
        return next((cls(place, file) for file in files if file.is_file()), None)

    def load(self) -> Captioned:
        file = self.captions.with_name("test_image_names.txt")
        if not file.is_file():
            raise DcclipError(f"{file} is missing: it says which image each caption is of", "fetch that too")
        names, texts = _names(file), _names(self.captions)
        if len(names) != len(texts):
            raise DcclipError(f"{self.captions} has {len(texts):,} captions, {file.name} {len(names):,} images", AGAIN)
        found: _Captions = defaultdict(list)  # an image may be named twice
        for name, text in zip(names, texts, strict=True):
            found[name].append(text)
        return captioned(dict(found), self.place, self.captions)


def captioned(captions: _Captions, place: Place, file: Path) -> Captioned:
    """The images of a caption file, found under the place's folders. Raises DcclipError where one is missing."""
    if not captions:
        raise DcclipError(f"{file} names no image of the split {place.split}", AGAIN)
    found: dict[str, Places] = {}
    files: dict[str, Path] = {}
    for root in _folders(place):
        for inside in (root, *(folder for folder in (root / "images",) if folder.is_dir())):
            places = Places(inside, False)
            for name in captions:
                if name not in found and (path := places.find(name)):
                    found[name] = places
                    files[name] = path
    names = list(captions)
    if absent := [name for name in names if name not in found]:
        raise missing(absent, str(_folders(place)[0]))
    if bare := [name for name in names if not captions[name]]:
        raise DcclipError(f"{file} has no caption of {bare[0]} ({len(bare)} such images)", AGAIN)
    texts = [(text, (number,)) for number, name in enumerate(names) for text in captions[name]]
    read = partial(_image, names, [found[name] for name in names])
    images = Images(names, read, stamp_of(files[name] for name in names))
    return Captioned(images, tuple(text for text, _ in texts), tuple(about for _, about in texts))


def _image(names: list[str], places: list[Places], index: int) -> bytes:
    return places[index].read(names[index])
