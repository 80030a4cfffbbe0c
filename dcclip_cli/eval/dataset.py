"""Test sets: images with labels or captions, and the interface of the loaders that read published
layouts.
"""

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.data.pair import Language
from dcclip_cli.data.prompts import ClassIndex, Prompts
from dcclip_cli.data.reading import Fault
from dcclip_cli.eval.registry import KnownSet, Metric
from dcclip_cli.model.preprocess import FORMATS, decode

DOWNLOAD_AGAIN = Message("download the data set again: it is incomplete or damaged")
_SPLIT_NAMES = {  # names that published copies use for a split, the best first
    "test": ("test", "val", "validation", "imagenetv2-matched-frequency-format-val", "images"),
    "val": ("val", "validation", "test"),
    "valid": ("valid", "validation"),
    "dev": ("dev", "val", "validation", "test"),
}


@dataclass(frozen=True)
class Images:
    """Images in a fixed order. `keys` name them to the user; `fingerprint` changes whenever a file
    is changed.
    """

    keys: Sequence[str]
    source_of: Callable[[int], bytes | Path | Image.Image] = field(repr=False)
    fingerprint: str

    def __len__(self) -> int:
        return len(self.keys)

    def load(self, index: int) -> Image.Image:
        """The decoded image. Raises DcclipError for an unreadable one."""
        try:
            source = self.source_of(index)
        except Fault as fault:
            raise DcclipError(
                "{}: {}", DOWNLOAD_AGAIN, self.keys[index], fault.drop.detail
            ) from None
        return (
            source if isinstance(source, Image.Image) else decode(source, formats=(*FORMATS, "PPM"))
        )


@dataclass(frozen=True)
class Classes:
    """Classes in one language: C names, the images' labels (N,) or truth values (N, C), and prompt
    templates.

    `alternates` are other names of a class, by its name. `plain_names` are names with which the
    classes are asked for a second time.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    templates: tuple[str, ...]
    alternates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    plain_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Captions:
    """The texts about images in one language: text j describes the images `images[j]`."""

    texts: tuple[str, ...]
    images: tuple[tuple[int, ...], ...]

    @classmethod
    def of_images(cls, captions: Iterable[Iterable[str]]) -> Self:
        """The captions of image 0, of image 1, and so on."""
        pairs = [
            (text, (number,))
            for number, captions_of_image in enumerate(captions)
            for text in captions_of_image
        ]
        return cls(tuple(text for text, _ in pairs), tuple(images for _, images in pairs))

    def merged(self) -> Self:
        """The same with equal texts as one, which describes the images of all of them."""
        images: dict[str, set[int]] = {}
        for text, described in zip(self.texts, self.images, strict=True):
            images.setdefault(text, set()).update(described)
        return type(self)(
            tuple(images), tuple(tuple(sorted(described)) for described in images.values())
        )


@dataclass(frozen=True)
class ImageTransform:
    """What a data set requires before the model's own preprocessing: see KnownSet."""

    squash: bool = False
    border: int = 0

    def record(self, preprocessing: dict[str, Any]) -> dict[str, Any]:
        """A model's preprocessing as results record it, with these steps if there are any."""
        steps = {"squash": self.squash, "border": self.border}
        return preprocessing | {name: value for name, value in steps.items() if value}

    def __call__(self, image: Image.Image, preprocessing: dict[str, Any]) -> Image.Image:
        if self.border:
            margin = self.border
            right = image.width - self.border
            lower = image.height - self.border
            image = image.crop((margin, margin, max(right, margin + 1), max(lower, margin + 1)))
        if self.squash:
            size = preprocessing.get("size")
            side = int(size) if isinstance(size, int) else min(image.size)
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return image


@dataclass(frozen=True)
class DataSet:
    """A test set. `truth` has an entry for each language to evaluate; `location` is None for a
    user's own data set.

    `partial` says what there is of a named data set where that is not all. Images without a
    caption in a language are left out of its retrieval; `notes` say so.
    """

    name: str
    images: Images
    truth: Mapping[Language, Classes | Captions]
    metric: Metric = "top1"
    split: str = ""
    transform: ImageTransform = ImageTransform()
    both_ways: bool = True
    location: "Location | None" = None
    partial: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_retrieval(self) -> bool:
        return any(isinstance(truth, Captions) for truth in self.truth.values())


@dataclass(frozen=True)
class Location:
    """A named data set's split, and the folders that may contain it, the most likely first."""

    dataset: KnownSet
    folders: tuple[Path, ...]
    split: str
    language: Language
    prompts: Prompts | None = field(default=None, compare=False)  # None for captions
    siblings: tuple[Path, ...] = ()

    @property
    def split_names(self) -> tuple[str, ...]:
        return _SPLIT_NAMES.get(self.split, (self.split,))

    @functools.cached_property
    def classes(self) -> ClassIndex:
        assert self.prompts is not None
        return ClassIndex(self.prompts)


@dataclass(frozen=True)
class Loaded:
    """Images with their truth: labels (N,), truth values (N, C) of several classes per image, or
    captions.
    """

    images: Images
    truth: np.ndarray | Captions


@dataclass(frozen=True)
class Loader(ABC):
    """Reads one published layout, which `layout` describes, from the file or folder `path`."""

    location: Location
    path: Path
    layout: ClassVar[str]

    @classmethod
    @abstractmethod
    def find(cls, location: Location) -> Self | None:
        """A loader for the files there; None if they are in another layout, or missing."""

    @abstractmethod
    def load(self) -> Loaded:
        """Everything but the pixels. Raises DcclipError for an incomplete data set, or classes in
        a wrong order.
        """


def fingerprint_of(files: Iterable[Path], *extra: object) -> str:
    """A hash of the files' paths, sizes and modification times; their contents are not read."""
    digest = hashlib.sha256(repr(extra).encode())
    for file in files:
        status = file.stat()
        digest.update(
            os.fsencode(f"{os.path.abspath(file)}\0{status.st_size}\0{status.st_mtime_ns}\n")
        )
    return digest.hexdigest()


def lines_of(text: Path | bytes | str) -> list[str]:
    """The lines of a text or text file without blank ones, each stripped."""
    content = text.read_bytes() if isinstance(text, Path) else text
    decoded = content if isinstance(content, str) else content.decode("utf-8-sig", "replace")
    return [line.strip() for line in decoded.splitlines() if line.strip()]
