"""Class folders (SPLIT/CLASS/*.jpg), WebDataset tars (SPLIT/0.tar), and data sets of Hugging
Face's `datasets`.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.hub import (
    files_on_hub,
    is_cached,
    is_repository,
    is_saved,
    load_hub,
    splits_of,
)
from dcclip_cli.data.class_folders import folders_in, images_by_class
from dcclip_cli.data.reading import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, Folder, Member, tar_members
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

if TYPE_CHECKING:
    from datasets import Dataset

_SUFFIXES = (*IMAGE_SUFFIXES, ".ppm")
_TRUTH_SUFFIX = {"classification": ".cls", "multi-label": ".npy", "retrieval": ".txt"}
_IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "img")
_TRUTH_COLUMNS = {
    "classification": ("cls", "label", "labels", "fine_label"),
    "multi-label": ("npy", "labels", "classes"),
    "retrieval": ("txt", "caption", "captions", "text", "sentences"),
}


class ClassFolders(Loader):
    """Folders named by the classes' keys (ImageNet: wnids), their English names, or their numbers."""

    layout = "SPLIT/CLASS/*.jpg"

    @classmethod
    def find(cls, location: Location) -> Self | None:
        if location.dataset.task != "classification":
            return None
        for root in location.folders:
            for split in location.split_names:
                if folders_in(root / split):
                    return cls(location, root / split)
            if any(
                location.classes.of_folder(folder.name) is not None for folder in folders_in(root)
            ):
                return cls(location, root)
        return None

    def load(self) -> Loaded:
        classes = self.location.classes
        dataset = self.location.dataset
        by_number: dict[int, list[Path]] = {}
        for name, files in images_by_class(self.path, _SUFFIXES).items():
            number = classes.of_folder(name)
            if number is None and dataset.extra_folders:
                continue
            if number is None or number in by_number:
                raise DcclipError(
                    "{} is not a class folder of {}, or repeats a class",
                    "use folder names such as {}",
                    self.path / name, dataset.label, classes.folders[0],
                )  # fmt: skip
            by_number[number] = files
        labelled = [(file, number) for number in sorted(by_number) for file in by_number[number]]
        images = image_files([file for file, _ in labelled], self.path)
        return Loaded(images, np.asarray([number for _, number in labelled]))


def image_files(files: list[Path], folder: Path) -> Images:
    names = [
        os.fsencode(file.relative_to(folder)).decode("utf-8", "backslashreplace") for file in files
    ]
    return Images(names, files.__getitem__, fingerprint_of(files))


class WebDatasetTars(Loader):
    """Tars as `clip-benchmark/wds_*` on the hub has them: KEY.jpg|webp|png with KEY.cls, KEY.npy
    or KEY.txt.

    Members are read in place: nothing is unpacked, no name in a tar is used as a path.
    """

    layout = "SPLIT/0.tar"

    @classmethod
    def find(cls, location: Location) -> Self | None:
        for root in location.folders:
            for folder in (root / location.split, root / "test", root):
                if any(folder.glob("*.tar")):
                    return cls(location, folder)
        return None

    def load(self) -> Loaded:
        dataset = self.location.dataset
        truth_suffix = _TRUTH_SUFFIX[dataset.task]
        shards = sorted(self.path.glob("*.tar"), key=lambda file: (len(file.name), file.name))
        keys = list[str]()
        places = list[tuple[Path, Member]]()
        truths = list[bytes]()
        for shard in shards:
            samples: dict[str, dict[str, Member]] = {"image": {}, "truth": {}}
            for member in tar_members(shard):
                if member.fault is not None:
                    reason = member.fault.detail
                    raise DcclipError(
                        "{}: {}: {}", DOWNLOAD_AGAIN, shard, member.name or "the tar", reason
                    )
                stem, dot, suffix = member.name.rpartition(".")
                role = (dot + suffix).lower()
                if role in IMAGE_SUFFIXES or role == truth_suffix:
                    samples["truth" if role == truth_suffix else "image"][stem] = member
            if alone := sorted(samples["image"].keys() ^ samples["truth"].keys()):
                lacks = truth_suffix if alone[0] in samples["image"] else Message("image")
                raise DcclipError(
                    "{}: {} has no {} file ({} such samples)",
                    DOWNLOAD_AGAIN,
                    shard,
                    alone[0],
                    lacks,
                    len(alone),
                )
            keys += samples["image"]
            places += [(shard, image) for image in samples["image"].values()]
            truths += [_bytes(shard, samples["truth"][key]) for key in samples["image"]]
        images = Images(keys, lambda index: _bytes(*places[index]), fingerprint_of(shards))
        if dataset.task == "retrieval":
            return Loaded(images, Captions.of_images(map(lines_of, truths)))
        classes = len(self.location.classes.folders)
        if dataset.task == "multi-label":
            rows = []
            for key, content in zip(keys, truths, strict=True):
                try:
                    vector = np.load(io.BytesIO(content), allow_pickle=False)
                except (ValueError, EOFError, OSError) as error:
                    raise DcclipError(
                        "{}.npy cannot be read: {}", DOWNLOAD_AGAIN, key, error
                    ) from None
                if vector.shape != (classes,):
                    raise DcclipError(
                        "{}.npy has the shape {}, not ({},)",
                        DOWNLOAD_AGAIN,
                        key,
                        vector.shape,
                        classes,
                    )
                rows.append(vector > 0)
            return Loaded(images, np.stack(rows))
        texts = [truth.decode("ascii", "replace").strip() for truth in truths]
        for key, text in zip(keys, texts, strict=True):
            if not text.isdecimal() or int(text) >= classes:
                raise DcclipError(
                    "{}.cls contains {!r} instead of a class from 0 to {}",
                    DOWNLOAD_AGAIN,
                    key,
                    text[:20],
                    classes - 1,
                )
        labels = np.asarray(list(map(int, texts)))
        root = self.path if self.path in self.location.folders else self.path.parent
        names = root / "classnames.txt"
        if names.is_file():
            labels = self.location.classes.order(lines_of(names), str(names), dataset.own_order)[
                labels
            ]
        elif not dataset.own_order:
            raise DcclipError(
                "{} is missing; it defines the order of the labels", "download this file too", names
            )
        return Loaded(images, labels)


def _bytes(shard: Path, member: Member) -> bytes:
    if member.size > MAX_IMAGE_BYTES:
        raise DcclipError(
            "{} is larger than {:,} bytes", DOWNLOAD_AGAIN, member.name, MAX_IMAGE_BYTES
        )
    with shard.open("rb") as stream:
        stream.seek(member.offset)
        return stream.read(member.size)


class HubDataset(Loader):
    """A split of a data set on the hub, which `datasets` downloads into its cache, or of one in a
    folder.
    """

    layout = "a folder of datasets' save_to_disk, or data/SPLIT-*.parquet"

    @classmethod
    def find(cls, location: Location) -> Self | None:
        folders = (
            folder
            for folder in location.folders
            if is_saved(str(folder)) or is_repository(str(folder))
        )
        return next((cls(location, folder) for folder in folders), None)

    @property
    def name(self) -> str:
        """The folder, or the name on the hub."""
        return self.path.as_posix()

    @property
    def is_remote(self) -> bool:
        return not is_saved(self.name) and not is_repository(self.name)

    def check(self) -> None:
        """Raise DcclipError unless a data set of the hub is in the local cache, or on the hub,
        which can be reached.
        """
        if not is_cached(self.name):
            files_on_hub(self.name, "dataset")

    def load(self) -> Loaded:
        import datasets

        task = self.location.dataset.task
        split = self.location.split
        if is_repository(self.name) and split != "train":
            splits = splits_of(self.name)
            split = next((name for name in self.location.split_names if name in splits), split)
        elif split != "train" and not is_saved(
            self.name
        ):  # every test split of clip-benchmark's is called test
            split = "test"
        dataset = load_hub(
            self.name, None, split, files=f"{split}/*.tar" if self.is_remote else None
        )
        truth = self._column(dataset, _TRUTH_COLUMNS[task])
        column = self._column(dataset, _IMAGE_COLUMNS)
        rows = dataset.cast_column(column, datasets.Image(decode=False)).select_columns([column])
        keys = dataset["__key__"] if "__key__" in dataset.column_names else range(len(dataset))
        folder = Folder(
            self.path if self.path.is_dir() else Path(datasets.config.HF_DATASETS_CACHE)
        )

        def read(index: int) -> bytes:
            cell = rows[index][column]
            if isinstance(cell.get("bytes"), bytes):
                return bytes(cell["bytes"])
            return folder.read(Path(str(cell.get("path"))), MAX_IMAGE_BYTES, "image")

        images = Images([str(key) for key in keys], read, str(dataset._fingerprint))
        if task == "retrieval":
            captions = (
                lines_of(cell) if isinstance(cell, str) else map(str.strip, map(str, cell))
                for cell in dataset[truth]
            )
            return Loaded(images, Captions.of_images(filter(None, texts) for texts in captions))
        if task == "multi-label":  # a row's truth values, or the numbers of its classes
            count = len(self.location.classes.folders)
            values = map(np.asarray, dataset[truth])
            truths = [
                row > 0 if row.shape == (count,) else np.isin(np.arange(count), row)
                for row in values
            ]
            return Loaded(images, np.stack(truths))
        return Loaded(images, self._labels(dataset, truth))

    def _column(self, dataset: Dataset, names: tuple[str, ...]) -> str:
        column = next((name for name in names if name in dataset.column_names), None)
        if column is None:
            hint = Message(
                "download clip-benchmark/wds_{}",
                self.location.dataset.hub or self.location.dataset.name,
            )
            raise DcclipError(
                "{} has no column {} (found: {})",
                hint,
                self.path,
                " or ".join(names),
                ", ".join(dataset.column_names),
            )
        return column

    def _labels(self, dataset: Dataset, column: str) -> np.ndarray:
        """Our labels (N,). Raises DcclipError where the source's classes are in an unknown order."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        classes = self.location.classes
        own_order = self.location.dataset.own_order
        count = len(classes.folders)
        if names := getattr(dataset.features[column], "names", None):
            order = classes.mapping(names, self.name)
        elif is_saved(self.name) and own_order:
            order = np.arange(count)
        else:
            local = self.path / "classnames.txt"
            try:
                file = (
                    local
                    if local.is_file()
                    else hf_hub_download(self.name, local.name, repo_type="dataset")
                )
            except (HfHubHTTPError, ValueError, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise DcclipError(
                    "{}: classnames.txt, which defines the order of the labels, cannot "
                    "be loaded: {}",
                    "try again",
                    self.path,
                    reason,
                ) from None
            order = classes.order(lines_of(Path(file)), str(local), own_order)
        labels = np.asarray(dataset[column])
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= count:
            message = Message(
                "{}: {} contains class numbers outside 0 to {}", self.path, column, count - 1
            )
            raise DcclipError(message, DOWNLOAD_AGAIN)
        return order[labels]
