"""Test images in Hugging Face `datasets`: `clip-benchmark/wds_NAME` on the hub, or what `save_to_disk` left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.data.files.hub import is_saved, load_hub
from dcclip_cli.data.files.reading import Folder
from dcclip_cli.data.table import MAX_IMAGE_BYTES
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.labels import ClassKeys
from dcclip_cli.eval.loaders.base import Captioned, Images, Labelled, Loader, Place

if TYPE_CHECKING:
    from datasets import Dataset

_IMAGES = ("jpg", "jpeg", "png", "webp", "image", "img")
_TRUTHS = {
    "classification": ("cls", "label", "labels", "fine_label"),
    "multi-label": ("npy", "labels", "classes"),
    "retrieval": ("txt", "caption", "captions", "text", "sentences"),
}


@dataclass(frozen=True)
class HubDataset(Loader):
    """A split of a data set on the hub, downloaded into the cache of `datasets`, or of one saved in a folder."""

    place: Place
    path: str
    layout = "a folder of datasets' save_to_disk"

    @classmethod
    def find(cls, place: Place) -> HubDataset | None:
        return next((cls(place, str(folder)) for folder in place.folders if is_saved(str(folder))), None)

    @classmethod
    def on_hub(cls, place: Place) -> HubDataset | None:
        """The data set on the hub; None where the hub has none, or another split of it."""
        return cls(place, f"clip-benchmark/wds_{place.known.hub}") if place.known.hub else None

    def load(self) -> Labelled | Captioned:
        """Raises DcclipError where the hub can't be reached or a column is missing."""
        found = load_hub(self.path, None, "train" if self.place.split == "train" else self._split())
        known = self.place.known
        column = self._column(found, _IMAGES)
        truth = self._column(found, _TRUTHS[known.task])
        images = self._images(found, column)
        if known.task == "retrieval":
            texts = [(text, (row,)) for row, several in enumerate(found[truth]) for text in _captions(several)]
            return Captioned(images, tuple(text for text, _ in texts), tuple(about for _, about in texts))
        return Labelled(images, self._labels(found, truth))

    def _split(self) -> str:
        return self.place.split if Path(self.path).is_dir() else "test"  # as all of clip-benchmark's are called

    def _column(self, found: Dataset, names: tuple[str, ...]) -> str:
        column = next((name for name in names if name in found.column_names), None)
        if column is None:
            raise DcclipError(
                f"{self.path} has no column {' or '.join(names)} (found: {', '.join(found.column_names)})",
                f"fetch it from clip-benchmark/wds_{self.place.known.hub or self.place.known.name}",
            )
        return column

    def _images(self, found: Dataset, column: str) -> Images:
        import datasets

        files = found.cast_column(column, datasets.Image(decode=False)).select_columns([column])
        folder = Folder(Path(self.path) if Path(self.path).is_dir() else Path(datasets.config.HF_DATASETS_CACHE), False)

        keys = found["__key__"] if "__key__" in found.column_names else range(len(found))
        return Images([str(key) for key in keys], partial(_image, files, column, folder), str(found._fingerprint))

    def _labels(self, found: Dataset, column: str) -> np.ndarray:
        assert self.place.prompts is not None
        count = len(self.place.prompts.folders)
        keys = ClassKeys(self.place.prompts)
        if self.place.known.task == "multi-label":
            labels = np.zeros((len(found), count), bool)
            for row, value in enumerate(found[column]):
                vector = np.asarray(value)
                labels[row] = vector > 0 if vector.shape == (count,) else np.isin(np.arange(count), vector)
            return labels
        labels = np.asarray(found[column])
        names = getattr(found.features[column], "names", None)
        if names:
            return keys.mapping(names, self.path)[labels]
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= count:
            raise DcclipError(f"{self.path}: {column} is no class from 0 to {count - 1}", "fetch it again")
        if not self.place.known.own_order:
            return keys.mapping(self._class_names(), f"{self.path}/classnames.txt")[labels]
        if not Path(self.path).is_dir():
            keys.check_order(self._class_names(), f"{self.path}/classnames.txt")
        return labels

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


def _image(files: Dataset, column: str, folder: Folder, index: int) -> bytes:
    cell: dict[str, Any] = files[index][column]
    if isinstance(cell.get("bytes"), bytes):
        return bytes(cell["bytes"])
    return folder.read(Path(str(cell.get("path"))), MAX_IMAGE_BYTES, "image")


def _captions(value: Any) -> list[str]:
    several = value.splitlines() if isinstance(value, str) else [str(one) for one in value]
    return [text.strip() for text in several if text.strip()]
