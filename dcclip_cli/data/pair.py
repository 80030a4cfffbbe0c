"""The image-text pair, and the interface of a dataset of pairs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from dcclip_cli.errors import DcclipError
from dcclip_cli.files import file_sha256

if TYPE_CHECKING:
    import numpy as np

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
BLOCK = 8_192  # samples of a block, where the files have none of their own


@dataclass(frozen=True)
class Pair:
    """One image with its captions.

    `image` is the bytes of a JPEG, PNG or WebP file, unchanged; `zh` and `en` are any number of captions; `meta` is
    whatever else the source knows (source, licence, url, ...), JSON-serialisable.
    """

    key: str
    image: bytes
    zh: tuple[str, ...] = ()
    en: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def captions(self, language: Language) -> tuple[str, ...]:
        return self.zh if language == "zh" else self.en


def caption_strings(value: Any, where: str) -> tuple[str, ...]:
    """Captions given as a string, a list of strings or None, without empty ones. Raises DcclipError for all else."""
    captions = (value,) if isinstance(value, str) else value or ()
    if not isinstance(captions, list | tuple) or not all(isinstance(one, str | None) for one in captions):
        raise DcclipError(f"{where} is not a list of captions", "captions are a string or a list of strings")
    return tuple(caption for caption in captions if caption)


def caption_id(caption: str) -> int:
    """64 bits by which equal captions, in upper or lower case, are recognized; never 0, which means no caption."""
    digest = hashlib.blake2b(caption.casefold().encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class PairDataset(ABC):
    """A map-style dataset of image-text pairs in a fixed order; image bytes are read when a pair is asked for.

    A subclass defines `path`, `__len__` and `__getitem__`; `captions` or `_captions` if it has any; `files` if its data
    is in others than the one file `path`.
    """

    path: Path
    embeddings: np.ndarray | None = None  # (N, D) float32, where the pairs have image embeddings in place of images
    has_uncaptioned_images = False  # whether some images have no captions on purpose
    _captions: Mapping[Language, list[tuple[str, ...]]] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Pair: ...

    def captions(self, language: Language) -> Sequence[tuple[str, ...]]:
        """The captions of every pair in one language, in order; samplers and collators look them up by index."""
        return self._captions.get(language) or [()] * len(self)

    @cached_property
    def files(self) -> list[Path]:
        """The files that the data is in; their bytes identify the data."""
        return [self.path]

    @cached_property
    def num_images(self) -> int:
        """The number of samples that have an image; they come before those that have none."""
        return len(self)

    def keys(self) -> list[str]:
        return [pair.key for pair in self]

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def file_digests(self) -> list[bytes]:
        """The sha256 of each file's bytes."""
        return [bytes.fromhex(file_sha256(file)) for file in self.files]

    @property
    def fingerprint(self) -> str:
        """A sha256 over the bytes of the files: equal only for equal data."""
        return hashlib.sha256(b"".join(self.file_digests)).hexdigest()

    def image_digest(self, index: int) -> bytes:
        """16 bytes that identify a sample's image by its content, wherever it is."""
        return hashlib.blake2b(self[index].image, digest_size=16).digest()

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        """(n, 2) uint64: `caption_id` of the samples' first Chinese and first English caption."""
        import numpy as np

        ids = [
            [caption_id(captions[index][0]) if captions[index] else 0 for captions in map(self.captions, LANGUAGES)]
            for index in indices.tolist()
        ]
        return np.asarray(ids, np.uint64).reshape(-1, len(LANGUAGES))

    @property
    def blocks(self) -> np.ndarray:
        """(M,) the first sample of each block, ascending from 0: samples that are stored next to each other.

        Shuffling keeps to a few blocks at a time, so that of data of any size only these need to be at hand.
        """
        import numpy as np

        return np.arange(0, len(self), BLOCK)

    def will_need(self, indices: np.ndarray) -> None:  # noqa: B027  # not every dataset has anything to fetch
        """Announce the samples of the next shuffle window, whose data may be fetched ahead."""


class FileDataset(PairDataset):
    """A dataset that is opened by its path. A new layout is a subclass of it, named in LAYOUTS in dataset.py."""

    layout: ClassVar[str]  # what a path has to be, for error messages: "a .parquet file"

    @classmethod
    @abstractmethod
    def find(cls, path: Path, uncaptioned: bool) -> Self | None:
        """The dataset at a path that exists, None if its layout is another; `uncaptioned`: also images without text.

        Raises DcclipError where the layout is this one and the files cannot be read.
        """
