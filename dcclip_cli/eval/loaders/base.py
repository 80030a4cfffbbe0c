"""What does every loader of a published layout give? Images that can be asked for by number, and what is in them."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from dcclip_cli.data.files.reading import Fault
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.prompts import Prompts
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.model.preprocess import FORMATS, decode

AGAIN = "fetch it again: it must be whole"


@dataclass(frozen=True)
class Images:
    """Images in a fixed order. `keys` name them to a person, `stamp` is another whenever a file was changed.

    `read` can be pickled, for the processes that share the work.
    """

    keys: Sequence[str]
    read: Callable[[int], bytes | Path | Image.Image] = field(repr=False)
    stamp: str

    def __len__(self) -> int:
        return len(self.keys)

    def picture(self, index: int) -> Image.Image:
        """The decoded image. Raises DcclipError for one that can't be read."""
        try:
            source = self.read(index)
        except Fault as fault:
            raise DcclipError(f"{self.keys[index]}: {fault.drop.detail}", AGAIN) from None
        return source if isinstance(source, Image.Image) else decode(source, formats=(*FORMATS, "PPM"))


@dataclass(frozen=True)
class Labelled:
    """Images with their classes: `labels` is (N,), or (N, C) of truth values where an image may show several."""

    images: Images
    labels: np.ndarray


@dataclass(frozen=True)
class Captioned:
    """Images with texts about them: text number j is about the images `about[j]`."""

    images: Images
    texts: tuple[str, ...]
    about: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Place:
    """What is looked for, and where: a data set's split under `folders`, the first that has it.

    `root` is what the folders lie in: torchvision and CIFAR's archives have folder names of their own. `beside` are the
    folders of the same pictures with captions in the other language: COCO's for COCO-CN.
    """

    known: KnownSet
    folders: tuple[Path, ...]
    split: str
    language: Language
    prompts: Prompts | None = None  # of the classes; none for captions
    root: Path | None = None
    beside: tuple[Path, ...] = ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders, and what they lie in."""
        return (*self.folders, *([self.root] if self.root else []))


class Loader(ABC):
    """Reads one published layout. `layout` says what it looks like."""

    layout: ClassVar[str]

    @classmethod
    @abstractmethod
    def find(cls, place: Place) -> Loader | None:
        """A loader for what lies there in this layout; None if nothing does."""

    @abstractmethod
    def load(self) -> Labelled | Captioned:
        """Everything but the pixels. Raises DcclipError for what is not whole, or not in the right order."""


def stamp_of(files: Iterable[Path], *more: object) -> str:
    """A hash of the files' names, sizes and times: they are not read for it."""
    digest = hashlib.sha256(repr(more).encode())
    for file in files:
        about = file.stat()
        digest.update(f"{os.path.abspath(file)}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def missing(images: Sequence[str], what: str) -> DcclipError:
    """The error for images that are named but not there."""
    return DcclipError(f"{what}: {len(images):,} images are missing, {images[0]} for one", "finish the download")
