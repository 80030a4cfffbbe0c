"""Test images in Hugging Face `datasets`: `clip-benchmark/wds_NAME` on the hub, or what `save_to_disk` left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.data.files.hub import is_repository, is_saved, load_hub, revision_of, splits_of, stream_hub
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES, Folder
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.labels import ClassKeys
from dcclip_cli.eval.loaders.base import Captioned, Images, Labelled, Loader, Place, stamp_of
from dcclip_cli.eval.loaders.stream import Stream, StreamedLabels

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_IMAGES = ("jpg", "jpeg", "png", "webp", "image", "img")
_OTHER_NAMES = {  # of splits: `datasets` calls val-*.parquet validation
    "test": ("test", "validation"),
    "val": ("val", "validation", "test"),
    "valid": ("valid", "validation"),
    "dev": ("dev", "validation", "test"),
}
_TRUTHS = {
    "classification": ("cls", "label", "labels", "fine_label"),
    "multi-label": ("npy", "labels", "classes"),
    "retrieval": ("txt", "caption", "captions", "text", "sentences"),
}


@dataclass(frozen=True)
class HubDataset(Loader):
    """A split of a data set on the hub, or of one that lies in a folder, as `save_to_disk` or the hub has it.

    It is downloaded into the cache of `datasets`, or, where the place asks for it, read as a stream.
    """

    place: Place
    path: str
    layout = "a folder of datasets' save_to_disk, or data/SPLIT-*.parquet"

    @classmethod
    def find(cls, place: Place) -> HubDataset | None:
        found = (str(folder) for folder in place.folders)
        return next((cls(place, folder) for folder in found if is_saved(folder) or is_repository(folder)), None)

    @classmethod
    def on_hub(cls, place: Place) -> HubDataset | None:
        """The data set on the hub; None where the hub has none, or another split of it."""
        return cls(place, f"clip-benchmark/wds_{place.known.hub}") if place.known.hub else None

    def load(self) -> Labelled | Captioned:
        """Raises DcclipError where the hub can't be reached or a column is missing."""
        split = self._split()
        files = None if is_saved(self.path) or is_repository(self.path) else f"{split}/*.tar"
        if self.place.streams and not is_saved(self.path):
            return self._streamed(split, files, self.place.streams)
        found = load_hub(self.path, None, split, files=files)
        column, truth = self._columns(found)
        images = self._images(found, column)
        if self.place.known.task == "retrieval":
            return _captioned(images, found[truth])
        return Labelled(images, self._numbers(found.features[truth], truth)(found[truth]))

    def _streamed(self, split: str, files: str | None, notes: Path) -> Labelled | Captioned:
        known, folder = self.place.known, Path(self.path)
        local = folder.is_dir()
        revision = None if local else revision_of(self.path)
        found = stream_hub(self.path, split, revision, files)
        column, truth = self._columns(found)
        stamp = stamp_of(sorted(file for file in folder.rglob("*") if file.is_file()), split) if local else ""
        stamp = stamp or f"{self.path}@{revision}/{split}"
        rows = found.cast_column(column, _undecoded()).select_columns([column, truth])
        count = known.size if split != "train" else None
        name = hashlib.sha256(f"{stamp} {truth}".encode()).hexdigest()[:24]
        stream = Stream(rows, column, truth, count, f"{self.path}: the split {split}", notes / f"{name}.json")
        read = partial(_streamed_image, stream, self._folder())
        images = Images([str(number) for number in range(len(stream))], read, stamp, streamed=True)
        if known.task == "retrieval":
            return _captioned(images, stream.truths(range(len(stream))))
        return Labelled(images, StreamedLabels(stream, self._numbers(found.features[truth], truth)))

    def _split(self) -> str:
        if self.place.split == "train":
            return "train"
        if not Path(self.path).is_dir():
            return "test"  # as all of clip-benchmark's are called
        if not is_repository(self.path):
            return self.place.split if is_saved(self.path) else "test"
        there = splits_of(self.path)
        return next((name for name in _OTHER_NAMES.get(self.place.split, ()) if name in there), self.place.split)

    def _columns(self, found: Dataset | IterableDataset) -> tuple[str, str]:
        """The columns of the images and of what is true of them."""
        return self._column(found, _IMAGES), self._column(found, _TRUTHS[self.place.known.task])

    def _column(self, found: Dataset | IterableDataset, names: tuple[str, ...]) -> str:
        column = next((name for name in names if name in found.column_names), None)
        if column is None:
            raise DcclipError(
                f"{self.path} has no column {' or '.join(names)} (found: {', '.join(found.column_names)})",
                f"fetch it from clip-benchmark/wds_{self.place.known.hub or self.place.known.name}",
            )
        return column

    def _images(self, found: Dataset, column: str) -> Images:
        files = found.cast_column(column, _undecoded()).select_columns([column])
        keys = found["__key__"] if "__key__" in found.column_names else range(len(found))
        read = partial(_image, files, column, self._folder())
        return Images([str(key) for key in keys], read, str(found._fingerprint))

    def _folder(self) -> Folder:
        import datasets

        return Folder(Path(self.path) if Path(self.path).is_dir() else Path(datasets.config.HF_DATASETS_CACHE), False)

    def _numbers(self, feature: Any, column: str) -> Callable[[Sequence[Any]], np.ndarray]:
        """What makes our labels of theirs. Raises DcclipError where theirs have an order of their own."""
        assert self.place.prompts is not None
        count = len(self.place.prompts.folders)
        if self.place.known.task == "multi-label":
            return partial(_vectors, count)
        keys = ClassKeys(self.place.prompts)
        names = getattr(feature, "names", None)
        order = np.arange(count)
        if names:
            order = keys.mapping(names, self.path)
        elif not self.place.known.own_order:
            order = keys.mapping(self._class_names(), f"{self.path}/classnames.txt")
        elif not is_saved(self.path):
            keys.check_order(self._class_names(), f"{self.path}/classnames.txt")
        return partial(_labels, order, f"{self.path}: {column}")

    def _class_names(self) -> list[str]:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        local = Path(self.path) / "classnames.txt"
        try:
            file = local if local.is_file() else hf_hub_download(self.path, "classnames.txt", repo_type="dataset")
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise DcclipError(
                f"{self.path}: classnames.txt, the order of its labels, can't be had: {said}", "try again"
            ) from None
        return [line.strip() for line in Path(file).read_text("utf-8").splitlines() if line.strip()]


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _labels(order: np.ndarray, where: str, values: Sequence[Any]) -> np.ndarray:
    labels = np.asarray(values)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= len(order):
        raise DcclipError(f"{where} is no class from 0 to {len(order) - 1}", "fetch it again")
    return order[labels]


def _vectors(count: int, values: Sequence[Any]) -> np.ndarray:
    labels = np.zeros((len(values), count), bool)
    for row, value in enumerate(values):
        vector = np.asarray(value)
        labels[row] = vector > 0 if vector.shape == (count,) else np.isin(np.arange(count), vector)
    return labels


def _captioned(images: Images, truths: Sequence[Any]) -> Captioned:
    texts = [(text, (row,)) for row, several in enumerate(truths) for text in _captions(several)]
    return Captioned(images, tuple(text for text, _ in texts), tuple(about for _, about in texts))


def _image(files: Dataset, column: str, folder: Folder, index: int) -> bytes:
    return _bytes(files[index][column], folder)


def _streamed_image(stream: Stream, folder: Folder, index: int) -> bytes:
    return _bytes(stream.cell(index), folder)


def _bytes(cell: dict[str, Any], folder: Folder) -> bytes:
    if isinstance(cell.get("bytes"), bytes):
        return bytes(cell["bytes"])
    return folder.read(Path(str(cell.get("path"))), MAX_IMAGE_BYTES, "image")


def _captions(value: Any) -> list[str]:
    several = value.splitlines() if isinstance(value, str) else [str(one) for one in value]
    return [text.strip() for text in several if text.strip()]
