"""Hugging Face `datasets`: `clip-benchmark/wds_NAME` on the hub, Parquet files, or a folder of `save_to_disk`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.data.reading import MAX_IMAGE_BYTES, Folder
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval.dataset import Captions, Images, Loaded, Loader, Location, lines_of
from dcclip_cli.hub import files_on_hub, is_cached, is_repository, is_saved, load_hub, splits_of

if TYPE_CHECKING:
    from datasets import Dataset

_IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "img")
_TRUTH_COLUMNS = {
    "classification": ("cls", "label", "labels", "fine_label"),
    "multi-label": ("npy", "labels", "classes"),
    "retrieval": ("txt", "caption", "captions", "text", "sentences"),
}


@dataclass(frozen=True)
class HubDataset(Loader):
    """A split of a data set on the hub, which `datasets` downloads into its cache, or of one in a folder."""

    location: Location
    path: str
    layout = "a folder of datasets' save_to_disk, or data/SPLIT-*.parquet"

    @classmethod
    def find(cls, location: Location) -> HubDataset | None:
        folders = (str(folder) for folder in location.folders)
        return next((cls(location, folder) for folder in folders if is_saved(folder) or is_repository(folder)), None)

    @property
    def is_remote(self) -> bool:
        """Whether it is on the hub, not in a folder."""
        return not is_saved(self.path) and not is_repository(self.path)

    def check(self) -> None:
        """Raise DcclipError unless a data set of the hub is in the local cache, or on the hub, which can be reached."""
        if not is_cached(self.path):
            files_on_hub(self.path, "dataset")

    def load(self) -> Loaded:
        """Raises DcclipError where the hub cannot be reached or a column is missing."""
        split = self._split()
        files = f"{split}/*.tar" if self.is_remote else None
        found = load_hub(self.path, None, split, files=files)
        truth = self._column(found, _TRUTH_COLUMNS[self.location.known.task])
        images = self._images(found, self._column(found, _IMAGE_COLUMNS))
        if self.location.known.task == "retrieval":
            return Loaded(images, Captions.of_images(map(_captions, found[truth])))
        return Loaded(images, self._labels(found, truth))

    def _split(self) -> str:
        if self.location.split == "train":
            return "train"
        if not is_repository(self.path):  # on the hub every test split of clip-benchmark's is called test
            return self.location.split if is_saved(self.path) else "test"
        there = splits_of(self.path)
        return next((name for name in self.location.split_names if name in there), self.location.split)

    def _column(self, found: Dataset, names: tuple[str, ...]) -> str:
        column = next((name for name in names if name in found.column_names), None)
        if column is None:
            hint = Message("download clip-benchmark/wds_{}", self.location.known.hub or self.location.known.name)
            raise DcclipError(
                "{} has no column {} (found: {})", hint, self.path, " or ".join(names), ", ".join(found.column_names)
            )
        return column

    def _images(self, found: Dataset, column: str) -> Images:
        import datasets

        rows = found.cast_column(column, datasets.Image(decode=False)).select_columns([column])
        keys = found["__key__"] if "__key__" in found.column_names else range(len(found))
        folder = Folder(Path(self.path if Path(self.path).is_dir() else datasets.config.HF_DATASETS_CACHE), False)

        def read(index: int) -> bytes:
            cell = rows[index][column]
            if isinstance(cell.get("bytes"), bytes):
                return bytes(cell["bytes"])
            return folder.read(Path(str(cell.get("path"))), MAX_IMAGE_BYTES, "image")

        return Images([str(key) for key in keys], read, str(found._fingerprint))

    def _labels(self, found: Dataset, column: str) -> np.ndarray:
        """Our labels, (N,) or (N, C). Raises DcclipError where the source's classes are in an unknown order."""
        classes, known = self.location.classes, self.location.known
        count = len(classes.folders)
        if known.task == "multi-label":
            return _truth_values(count, found[column])
        if names := getattr(found.features[column], "names", None):
            order = classes.mapping(names, self.path)
        elif is_saved(self.path) and known.own_order:
            order = np.arange(count)
        else:
            order = classes.order(self._class_names(), f"{self.path}/classnames.txt", known.own_order)
        labels = np.asarray(found[column])
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= count:
            what = Message("{}: {} contains values that are not a class from 0 to {}", self.path, column, count - 1)
            raise DcclipError(what, "download it again")
        return order[labels]

    def _class_names(self) -> list[str]:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        local = Path(self.path) / "classnames.txt"
        try:
            file = local if local.is_file() else hf_hub_download(self.path, "classnames.txt", repo_type="dataset")
        except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DcclipError(
                "{}: classnames.txt, the order of its labels, cannot be loaded: {}", "try again", self.path, reason
            ) from None
        return lines_of(Path(file))


def _truth_values(count: int, values: Sequence[Any]) -> np.ndarray:
    labels = np.zeros((len(values), count), bool)
    for row, value in enumerate(values):
        vector = np.asarray(value)
        labels[row] = vector > 0 if vector.shape == (count,) else np.isin(np.arange(count), vector)
    return labels


def _captions(value: Any) -> list[str]:
    return lines_of(value) if isinstance(value, str) else [text for one in value if (text := str(one).strip())]
