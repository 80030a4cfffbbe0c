"""The image-text pair, the interface of a dataset of pairs, and several datasets as one."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain, compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, overload

import numpy as np
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import file_sha256
from dcclip_cli.core.text import encodable
from dcclip_cli.model.preprocess import ImageError, decode

if TYPE_CHECKING:
    import pyarrow as pa

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
T = TypeVar("T")
ROW_GROUP = 8_192  # samples in a row group of the Parquet files that are written
_CHUNK = 65_536  # rows of an Arrow array
_WHITE_SIDE = 64  # of the image in place of an unreadable one, in pixels


@dataclass(frozen=True)
class Pair:
    """One image with its captions.

    `image` is the bytes of a JPEG, PNG or WebP file, unchanged; `zh` and `en` are any number of
    captions; `meta` is whatever else the source knows (source, license, url, ...),
    JSON-serialisable.
    """

    key: str
    image: bytes
    zh: tuple[str, ...] = ()
    en: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    def captions(self, language: Language) -> tuple[str, ...]:
        return self.zh if language == "zh" else self.en


def caption_strings(value: Any, where: str) -> tuple[str, ...]:
    """Captions given as a string, a list or None, `encodable`, without empty ones. Raises
    DcclipError for all else.
    """
    captions = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(captions, list | tuple) or not all(
        isinstance(caption, str | None) for caption in captions
    ):
        raise DcclipError(
            "{} is neither a string nor a list of strings",
            "give captions as a string or a list of strings",
            where,
        )
    return tuple(encodable(caption) for caption in captions if caption)


def check_once(columns: Iterable[str], names: Sequence[str], place: object) -> None:
    """Raise DcclipError if a table has one of the `columns` that are used more than once among its
    `names`.
    """
    if repeated := [column for column in columns if names.count(column) > 1]:
        raise DcclipError(
            "{} has more than one column {}",
            "rename or remove all but one of them",
            place,
            repeated[0],
        )


def image_digest(image: bytes) -> bytes:
    """16 bytes that identify an image by its content, wherever it is."""
    return hashlib.blake2b(image, digest_size=16).digest()


def caption_id(caption: str) -> int:
    """64 bits by which equal captions, in upper or lower case, are recognized; never 0, which
    means no caption.
    """
    digest = hashlib.blake2b(caption.casefold().encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class Lazy(Sequence[T]):
    """Values of all samples of a dataset, looked up by index and never kept.

    `get` looks up one value; `iterate` yields all of them, where that is faster than one by one.
    """

    def __init__(
        self, length: int, get: Callable[[int], T], iterate: Callable[[], Iterator[T]] | None = None
    ) -> None:
        self._length = length
        self._get = get
        self._iterate = iterate

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        places = range(self._length)[index]
        return (
            self._get(places) if isinstance(places, int) else [self._get(place) for place in places]
        )

    def __iter__(self) -> Iterator[T]:
        return self._iterate() if self._iterate else map(self._get, range(self._length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != self._length:
            return False
        return all(value == other_value for value, other_value in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def captions_in_memory(
    texts: Iterable[Mapping[Language, tuple[str, ...]]],
) -> dict[Language, Sequence[tuple[str, ...]]]:
    """Captions by language, kept in memory without a Python object for each."""
    import pyarrow as pa

    entries = iter(texts)
    kind = pa.list_(pa.string())
    chunks: dict[Language, list[pa.Array]] = {language: [] for language in LANGUAGES}
    while chunk := list(islice(entries, _CHUNK)):
        for language, arrays in chunks.items():
            arrays.append(pa.array([text.get(language, ()) for text in chunk], kind))
    return {
        language: lazy_captions(pa.chunked_array(arrays, kind))
        for language, arrays in chunks.items()
    }


def lazy_captions(captions: pa.ChunkedArray) -> Lazy[tuple[str, ...]]:
    """The captions in an Arrow column of lists."""
    chunks = captions.chunks
    firsts = [0, *accumulate(map(len, chunks))]

    def get(index: int) -> tuple[str, ...]:
        number = bisect_right(firsts, index) - 1
        return tuple(chunks[number][index - firsts[number]].as_py())

    return Lazy(
        len(captions),
        get,
        lambda: (tuple(texts) for chunk in chunks for texts in chunk.to_pylist()),
    )


class PairDataset(ABC):
    """A map-style dataset of image-text pairs in a fixed order; image bytes are read when a pair
    is asked for.

    A subclass defines `path`, `__len__` and `__getitem__`; `captions` or `_captions` if it has
    any; `files` if its data is in others than the one file `path`.
    """

    path: str | Path  # for messages: a URL is a text
    sources: Sequence[int] = (0,)  # the first sample of each source that it was opened from
    embeddings: np.ndarray | None = (
        None  # (N, D) float32, where the pairs have image embeddings in place of images
    )
    _captions: Mapping[Language, Sequence[tuple[str, ...]]] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Pair: ...

    def captions(self, language: Language) -> Sequence[tuple[str, ...]]:
        """The captions of every pair in one language, in order; samplers and collators look them
        up by index.
        """
        if language in self._captions:
            return self._captions[language]
        return Lazy(len(self), lambda _: ())

    @cached_property
    def files(self) -> list[Path]:
        """The files that the data is in; their bytes identify the data."""
        return [Path(self.path)]

    @cached_property
    def num_images(self) -> int:
        """The number of samples that have an image; they come before those that have none."""
        return len(self)

    @cached_property
    def num_pairs(self) -> int:
        """The number of samples that are pairs; they come before images without captions."""
        return self.num_images

    def keys(self) -> Sequence[str]:
        return Lazy(len(self), lambda index: self[index].key)

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, equal only for equal data; here a sha256 over the bytes of the
        files.
        """
        return hashlib.sha256(
            b"".join(bytes.fromhex(file_sha256(file)) for file in self.files)
        ).hexdigest()

    def image(self, index: int) -> bytes:
        return self[index].image

    def decoded(
        self, index: int, draft: int = 0, unreadable: dict[int, str] | None = None
    ) -> Image.Image:
        """An image, by `decode`. Raises DcclipError.

        With `unreadable`, a damaged image without captions is white, and this gets the reason by
        the index.
        """
        image = self.image(index)
        try:
            return decode(image, draft=draft)
        except DcclipError as error:
            if unreadable is not None and index >= self.num_pairs and isinstance(error, ImageError):
                unreadable[index] = f"{self.keys()[index]}: {error.what}"
                return Image.new("RGB", (_WHITE_SIDE, _WHITE_SIDE), "white")
            raise DcclipError(
                "{}: pair {}: {}", error.hint, self.path, self.keys()[index], error.what
            ) from None

    def image_digest(self, index: int) -> bytes:
        return image_digest(self.image(index))

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        """(n, 2) uint64: `caption_id` of the samples' first Chinese and first English caption."""
        ids = [
            [
                caption_id(captions[index][0]) if captions[index] else 0
                for captions in map(self.captions, LANGUAGES)
            ]
            for index in indices.tolist()
        ]
        return np.asarray(ids, np.uint64).reshape(-1, len(LANGUAGES))


class ConcatDataset(PairDataset):
    """Datasets one after the other; those with images have to come first."""

    def __init__(self, datasets: Sequence[PairDataset]) -> None:
        self.path = datasets[0].path
        self._datasets = datasets
        self.num_images = sum(dataset.num_images for dataset in datasets)
        self.num_pairs = sum(dataset.num_pairs for dataset in datasets)
        self.firsts = [0, *accumulate(map(len, datasets))]  # the index at which each begins

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> Pair:
        dataset, row = self._at(index)
        return dataset[row]

    def image(self, index: int) -> bytes:
        dataset, row = self._at(index)
        return dataset.image(row)

    def image_digest(self, index: int) -> bytes:
        dataset, row = self._at(index)
        return dataset.image_digest(row)

    def captions(self, language: Language) -> Sequence[tuple[str, ...]]:
        return self._values(lambda dataset: dataset.captions(language))

    def keys(self) -> Sequence[str]:
        return self._values(lambda dataset: dataset.keys())

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(
            "".join(dataset.fingerprint for dataset in self._datasets).encode()
        ).hexdigest()

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        ids = np.empty((len(indices), len(LANGUAGES)), np.uint64)
        for dataset, places, rows in self._split(indices):
            ids[places] = dataset.first_caption_ids(rows)
        return ids

    def _at(self, index: int) -> tuple[PairDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.firsts, index) - 1
        return self._datasets[number], index - self.firsts[number]

    def _split(self, indices: np.ndarray) -> Iterator[tuple[PairDataset, np.ndarray, np.ndarray]]:
        """Each dataset that has some of the samples, their places in `indices`, and their indices
        in the dataset.
        """
        numbers = np.searchsorted(self.firsts, indices, "right") - 1
        order = np.argsort(numbers, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
            if len(places):
                number = int(numbers[places[0]])
                yield self._datasets[number], places, indices[places] - self.firsts[number]

    def _values(self, of: Callable[[PairDataset], Sequence[Any]]) -> Lazy[Any]:
        def get(index: int) -> Any:
            dataset, row = self._at(index)
            return of(dataset)[row]

        return Lazy(len(self), get, lambda: chain.from_iterable(map(of, self._datasets)))


class Rows(ConcatDataset):
    """Some samples of a dataset, all of which have images: those at the ascending `rows`."""

    def __init__(self, dataset: PairDataset, rows: np.ndarray) -> None:
        self.path = dataset.path
        self._whole = dataset
        self._rows = rows
        self.embeddings = None if dataset.embeddings is None else dataset.embeddings[rows]
        self.num_images = len(rows)
        self.num_pairs = len(rows) if dataset.num_pairs else 0
        self.sources = [bisect_left(rows, first) for first in dataset.sources]

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._whole.fingerprint.encode() + self._rows.tobytes()).hexdigest()

    def _at(self, index: int) -> tuple[PairDataset, int]:
        return self._whole, int(self._rows[index])

    def _split(self, indices: np.ndarray) -> Iterator[tuple[PairDataset, np.ndarray, np.ndarray]]:
        yield self._whole, np.arange(len(indices)), self._rows[indices]

    def _values(self, of: Callable[[PairDataset], Sequence[Any]]) -> Lazy[Any]:
        values = of(self._whole)
        rows = self._rows
        return Lazy(
            len(rows),
            lambda index: values[int(rows[index])],
            lambda: compress(values, np.isin(np.arange(len(values)), rows)),
        )


class FileDataset(PairDataset):
    """A dataset that is opened by its path. A new layout is a subclass of it, named in LAYOUTS in
    dataset.py.
    """

    layout: ClassVar[str]  # what a path has to be, for error messages: "a .parquet file"

    @classmethod
    @abstractmethod
    def find(cls, path: Path, uncaptioned: bool) -> Self | None:
        """The dataset at a path that exists, None if its layout is another; `uncaptioned`: also
        images without text.

        Raises DcclipError where the layout is this one and the files cannot be read.
        """
