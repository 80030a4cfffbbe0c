"""Test images in one folder per class: SPLIT/CLASS/*.jpg, as ImageNet and ELEVATER's archives have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.data.files.reading import IMAGE_SUFFIXES
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.labels import ClassKeys
from dcclip_cli.eval.loaders.base import Images, Labelled, Loader, Place, stamp_of
from dcclip_cli.eval.registry import KnownSet

_SUFFIXES = (*IMAGE_SUFFIXES, ".ppm")
_OTHER_NAMES = {  # of splits
    "test": ("test", "val", "validation", "imagenetv2-matched-frequency-format-val", "images"),
    "val": ("val", "validation", "test"),
    "dev": ("dev", "val", "test"),
}


@dataclass(frozen=True)
class ClassFolders(Loader):
    """Folders called by the classes' keys (ImageNet: wnids), their English names, or their numbers."""

    known: KnownSet
    folder: Path
    keys: ClassKeys
    layout = "SPLIT/CLASS/*.jpg"

    @classmethod
    def find(cls, place: Place) -> ClassFolders | None:
        if place.prompts is None or place.known.task != "classification":
            return None
        keys = ClassKeys(place.prompts)
        for root in place.folders:
            for split in _OTHER_NAMES.get(place.split, (place.split,)):
                if (root / split).is_dir() and _folders(root / split):
                    return cls(place.known, root / split, keys)
            if any(keys.of_folder(folder.name) is not None for folder in _folders(root)):
                return cls(place.known, root, keys)
        return None

    def load(self) -> Labelled:
        """The images, class by class. Raises DcclipError for a folder that is no class, and a class without images."""
        images = images_by_class(self.folder, _SUFFIXES)
        numbers = {folder: self.keys.of_folder(folder) for folder in images}
        foreign = [folder for folder, number in numbers.items() if number is None]
        if foreign and not self.known.others:
            raise DcclipError(
                f"{self.folder / foreign[0]} is no class of {self.known.said} (there are {len(foreign)} such folders)",
                f"class folders are called like {self.keys.folders[0]}",
            )
        by_number: dict[int, list[Path]] = {}
        for folder, number in numbers.items():
            if number in by_number:
                raise DcclipError(f"{self.folder / folder} is a second folder of one class", "keep one of the two")
            if number is not None:
                by_number[number] = images[folder]
        if lacking := [key for number, key in enumerate(self.keys.folders) if number not in by_number]:
            raise DcclipError(
                f"{self.folder}: {len(lacking)} of {len(self.keys.folders)} classes have no images, "
                f"{lacking[0]} for one",
                "finish the download; a part of the data can be tried as a data set of your own: --dataset PATH",
            )
        files = [(file, number) for number in sorted(by_number) for file in by_number[number]]
        return Labelled(images_of([file for file, _ in files], self.folder), np.asarray([label for _, label in files]))


def images_of(files: list[Path], folder: Path) -> Images:
    """Image files under a folder, named by their paths in it."""
    return Images([str(file.relative_to(folder)) for file in files], files.__getitem__, stamp_of(files))


def images_by_class(path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, list[Path]]:
    """Folder name -> its image files, both sorted, empty folders left out. Raises DcclipError if nothing is left."""
    found = {}
    for folder in _folders(path):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes)
        if files:
            found[folder.name] = files
    if not found:
        raise DcclipError(f"{path} holds no folders with images", "make a folder for each class, with its images in it")
    return found


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
