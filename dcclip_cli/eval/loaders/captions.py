"""Retrieval data sets in their authors' files: Flickr30k, COCO and their Chinese versions, MUGE."""

from pathlib import Path
from typing import Self

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.data import caption_files
from dcclip_cli.data.reading import Drop, Row
from dcclip_cli.eval.dataset import (
    DOWNLOAD_AGAIN,
    Captions,
    Images,
    Loaded,
    Loader,
    Location,
    fingerprint_of,
    lines_of,
)

_Captions = dict[str, list[str]]  # an image's name -> its captions
# Patterns of caption files, tried in this order. The split of an image is in its record
# (Karpathy), or there is a file with the names of the split's images.
_FILES: dict[str, tuple[str, ...]] = {
    "flickr30k": ("dataset_flickr30k.json", "*karpathy*.json", "*test*.json", "*test*.txt"),
    "flickr30k_cn": (
        "flickr30kcn_test*.txt",
        "flickr30k_cn[a_]*test*.txt",
        "*[tT]est*.txt",
        "dataset_flickr30k*.json",
    ),
    "coco": ("dataset_coco.json", "*karpathy*.json", "captions_test*.json", "*test*.json"),
    "coco_cn": (
        "*human-written-caption*.txt",
        "*[tT]est*caption*.txt",
        "coco-cn_test*.txt",
        "*test*.txt",
    ),
}
_ONLY = {
    "coco_cn": ("coco-cn_test.txt", "*test_imgid*.txt")
}  # files with the names of the split's images


class CaptionFiles(Loader):
    """Karpathy's `dataset_NAME.json`, or text with lines `IMAGE#0<TAB>CAPTION`, next to a folder
    of images.
    """

    layout = "dataset_NAME.json, or lines IMAGE#0 CAPTION"

    @classmethod
    def find(cls, location: Location) -> Self | None:
        only = _only(location)
        for pattern in _FILES.get(location.dataset.name, ()):
            for root in _folders(location):
                for folder in (root, root / "annotations"):
                    if matches := [
                        file for file in sorted(folder.glob(pattern)) if file not in only
                    ]:
                        return cls(location, matches[0])
        return None

    def load(self) -> Loaded:
        split = self.location.split
        names: dict[str, str] = {}  # identity -> name
        only = {
            caption_files.identity(name) for file in _only(self.location) for name in lines_of(file)
        }
        for image in caption_files.names_in(self.path):
            if image.fault:
                raise DcclipError(
                    "{}: {}: {}", DOWNLOAD_AGAIN, self.path, image.name, image.fault.detail
                )
            identity = caption_files.identity(image.name)
            if image.record.get("split", split) == split and (not only or identity in only):
                names.setdefault(identity, image.name)
        captions: _Captions = {name: [] for name in names.values()}
        for identity, text in caption_files.captions_in(self.path, names):
            captions[names[identity]].append(text)
        return _with_images(captions, self.location, self.path)


def _folders(location: Location) -> tuple[Path, ...]:
    """The data set's own folders, then those with the same images; `_FILES` tells the languages'
    files apart.
    """
    return (*location.folders, *location.siblings)


def _only(location: Location) -> list[Path]:
    """Files with the names of this split's images, one a line, without captions."""
    patterns = _ONLY.get(location.dataset.name, ())
    files = [
        file
        for root in _folders(location)
        for pattern in patterns
        for file in sorted(root.glob(pattern))
    ]
    return [file for file in files if len(next(iter(lines_of(file)), "").split()) == 1]


def _with_images(captions: _Captions, location: Location, file: Path) -> Loaded:
    """A caption file's images, found in the location's folders. Raises DcclipError where an image
    lacks.
    """
    if not captions:
        raise DcclipError("{} lists no image of the split {}", DOWNLOAD_AGAIN, file, location.split)
    folders = [
        folder
        for root in _folders(location)
        for folder in (root, root / "images")
        if folder.is_dir()
    ]
    places = [caption_files.Places(folder) for folder in folders]
    located: dict[str, tuple[caption_files.Places, Path]] = {}
    for name in captions:
        if match := next(((place, path) for place in places if (path := place.find(name))), None):
            located[name] = match
    names = list(captions)
    if absent := [name for name in names if name not in located]:
        message = Message(
            "{}: {:,} images are missing, for example {}",
            _folders(location)[0],
            len(absent),
            absent[0],
        )
        raise DcclipError(message, "finish the download")
    files = fingerprint_of(path for _, path in located.values())
    images = Images(names, lambda index: located[names[index]][0].read(names[index]), files)
    return Loaded(images, Captions.of_images(captions.values()))


class Base64Lines(Loader):
    """Chinese-CLIP's files: `SPLIT_imgs.tsv`, lines NUMBER<TAB>BASE64, and `SPLIT_texts.jsonl`,
    texts of images.
    """

    layout = "SPLIT_imgs.tsv"

    @classmethod
    def find(cls, location: Location) -> Self | None:
        name = f"{location.split}{caption_files.IMAGES}"
        if location.dataset.task != "retrieval":
            return None
        files = (root / folder / name for root in location.folders for folder in ("", "datasets"))
        return next((cls(location, file) for file in files if file.is_file()), None)

    def load(self) -> Loaded:
        file = caption_files.texts_file(self.path)
        spans: dict[str, tuple[int, int, int]] = {}  # name -> offset in bytes, length, line number
        for row in caption_files.image_rows(
            self.path, {"start": 0, "end": self.path.stat().st_size, "number": 1}
        ):
            name = caption_files.number_of(row)
            if name is None or row.content is None:
                raise DcclipError(
                    "{}:{}: expected an image number, a tab and base64",
                    DOWNLOAD_AGAIN,
                    self.path,
                    row.number,
                )
            spans[name] = (row.start, len(row.content), row.number)
        rows = list(spans.values())

        def read(index: int) -> bytes:
            start, length, number = rows[index]
            with self.path.open("rb") as stream:
                stream.seek(start)
                return caption_files.image_of(Row(number, start, stream.read(length)))

        images = Images(list(spans), read, fingerprint_of([self.path]))
        numbers = {name: number for number, name in enumerate(spans)}
        captions: list[tuple[str, tuple[int, ...]]] = []
        for line, text in caption_files.texts_in(file, None):
            if isinstance(text, Drop):
                raise DcclipError("{}:{}: {}", DOWNLOAD_AGAIN, file, line, text.detail)
            if absent := [image for image in text.images if image not in numbers]:
                raise DcclipError(
                    "{}:{}: {} has no image {}",
                    "finish the download",
                    file,
                    line,
                    self.path.name,
                    absent[0],
                )
            if text.images:
                captions.append((text.text, tuple(numbers[image] for image in text.images)))
        if not captions:
            raise DcclipError(
                "{} contains no captioned images",
                "use the valid split: test captions are not public",
                file,
            )
        return Loaded(
            images,
            Captions(
                tuple(text for text, _ in captions),
                tuple(image_numbers for _, image_numbers in captions),
            ),
        )
