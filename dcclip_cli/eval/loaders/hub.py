"""Test images in Hugging Face `datasets`: `clip-benchmark/wds_NAME` on the hub, or what `save_to_disk` left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.data.files.hub import is_repository, is_saved, load_hub, splits_of
from dcclip_cli.data.files.reading import MAX_IMAGE_BYTES, Folder
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.labels import ClassKeys
from dcclip_cli.eval.loaders.base import Captioned, Images, Labelled, Loader, Place

if TYPE_CHECKING:
    from datasets import Dataset

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

    It is downloaded into the cache of `datasets`.
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
        found = load_hub(self.path, None, split, files=files)
        truth = self._column(found, _TRUTHS[self.place.known.task])
        images = self._images(found, self._column(found, _IMAGES))
        if self.place.known.task == "retrieval":
            return _captioned(images, found[truth])
        return Labelled(images, self._labels(found, truth))

    def _split(self) -> str:
        if self.place.split == "train":
            return "train"
        if not Path(self.path).is_dir():
            return "test"  # as all of clip-benchmark's are called
        if not is_repository(self.path):
            return self.place.split if is_saved(self.path) else "test"
        there = splits_of(self.path)
        return next((name for name in _OTHER_NAMES.get(self.place.split, ()) if name in there), self.place.split)

    def _column(self, found: Dataset, names: tuple[str, ...]) -> str:
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

    def _labels(self, found: Dataset, column: str) -> np.ndarray:
        """Our labels, (N,) or (N, C). Raises DcclipError where the source's have an order of their own."""
        assert self.place.prompts is not None
        count = len(self.place.prompts.folders)
        if self.place.known.task == "multi-label":
            return _vectors(count, found[column])
        keys = ClassKeys(self.place.prompts)
        names = getattr(found.features[column], "names", None)
        order = np.arange(count)
        if names:
            order = keys.mapping(names, self.path)
        elif not self.place.known.own_order:
            order = keys.mapping(self._class_names(), f"{self.path}/classnames.txt")
        elif not is_saved(self.path):
            keys.check_order(self._class_names(), f"{self.path}/classnames.txt")
        labels = np.asarray(found[column])
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= count:
            raise DcclipError(f"{self.path}: {column} is no class from 0 to {count - 1}", "fetch it again")
        return order[labels]

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
    cell = files[index][column]
    if isinstance(cell.get("bytes"), bytes):
        return bytes(cell["bytes"])
    return folder.read(Path(str(cell.get("path"))), MAX_IMAGE_BYTES, "image")


def _captions(value: Any) -> list[str]:
    several = value.splitlines() if isinstance(value, str) else [str(one) for one in value]
    return [text.strip() for text in several if text.strip()]
