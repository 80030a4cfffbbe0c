"""Test images as torchvision.datasets leaves them on disk, for the classes whose split is the data set's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.labels import ClassKeys
from dcclip_cli.eval.loaders.base import Images, Labelled, Loader, Place, missing, stamp_of
from dcclip_cli.eval.loaders.class_folders import images_of


@dataclass(frozen=True)
class TorchvisionFiles(Loader):
    """What torchvision downloaded; it reads its own lists, the images are decoded as all others are."""

    place: Place
    roots: tuple[Path, ...]  # any of which may be what torchvision was told
    layout = "torchvision's own folder"

    @classmethod
    def find(cls, place: Place) -> TorchvisionFiles | None:
        about = place.known.torchvision
        if about is None:
            return None
        roots = tuple(root for root in place.roots[::-1] if (root / about.folder).is_dir())
        return cls(place, roots) if roots else None

    def load(self) -> Labelled:
        """Raises DcclipError where torchvision finds its files incomplete."""
        about = self.place.known.torchvision
        assert about is not None and self.place.prompts is not None
        found, root = self._open()
        if about.name == "VOCDetection":
            return self._voc(found, root)
        images, labels = _pcam(found) if about.name == "PCAM" else _rows(found, root)
        keys = ClassKeys(self.place.prompts)
        names = [str(name) for name in getattr(found, "classes", ())]
        if any(keys.find(name) is None for name in names):  # another wording of theirs
            keys.check_order(names, f"torchvision's {about.name}")
            names = []
        labels = keys.mapping(names, f"torchvision's {about.name}")[labels] if names else labels
        return Labelled(images, labels)

    def _open(self) -> tuple[Any, Path]:
        import torchvision.datasets

        about = self.place.known.torchvision
        assert about is not None
        arguments = about.train if self.place.split == "train" else about.test
        said = ""
        for root in self.roots:
            try:
                return getattr(torchvision.datasets, about.name)(str(root), download=False, **arguments), root
            except (RuntimeError, OSError, ValueError) as error:
                said = said or str(error)
        said = " ".join(said.split()).removesuffix("You can use download=True to download it").strip()
        raise DcclipError(f"{self.roots[0] / about.folder}: torchvision says: {said}", "finish the download")

    def _voc(self, found: Any, root: Path) -> Labelled:
        """Which classes each picture shows, from ImageSets/Main; those only difficult to see count as not shown."""
        assert self.place.prompts is not None
        files = [Path(name) for name in found.images]
        place = {file.stem: number for number, file in enumerate(files)}
        lists = files[0].parents[1] / "ImageSets" / "Main"
        labels = np.zeros((len(files), len(self.place.prompts.folders)), bool)
        for column, name in enumerate(self.place.prompts.folders):
            file = lists / f"{name.replace(' ', '')}_{found.image_set}.txt"
            if not file.is_file():
                raise DcclipError(f"{file} is missing: nothing says which pictures show {name}", "finish the download")
            for line in file.read_text("utf-8").splitlines():
                picture, _, shown = line.partition(" ")
                if picture in place:
                    labels[place[picture], column] = shown.strip() == "1"
        return Labelled(images_of(files, root), labels)


def _rows(found: Any, root: Path) -> tuple[Images, np.ndarray]:
    """Images and label numbers, under whichever of its names torchvision keeps them."""
    if hasattr(found, "data"):  # MNIST: all in memory
        pixels, labels = np.asarray(found.data), np.asarray(found.targets)
        stamp = stamp_of(sorted(Path(found.raw_folder).iterdir()), len(labels))
        return Images([str(number) for number in range(len(labels))], partial(_pixels, pixels), stamp), labels
    if (samples := getattr(found, "_samples", getattr(found, "samples", None))) is not None:
        files, labels = [Path(file) for file, _ in samples], np.asarray([label for _, label in samples])
    else:
        paths = getattr(found, "_image_files", getattr(found, "_images", None))
        files, labels = [Path(file) for file in paths or ()], np.asarray(found._labels)
    if absent := [str(file) for file in files if not file.is_file()]:
        raise missing(absent, str(root))
    return images_of(files, root), labels


def _pcam(found: Any) -> tuple[Images, np.ndarray]:
    import h5py

    names = found._FILES[found._split]
    files = [Path(found._base_folder, names[kind][0]) for kind in ("images", "targets")]
    with h5py.File(files[1]) as targets:
        labels = np.asarray(targets["y"]).ravel().astype(int)

    return Images([str(number) for number in range(len(labels))], partial(_patch, files[0]), stamp_of(files)), labels


def _pixels(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index])


def _patch(file: Path, index: int) -> Image.Image:
    import h5py

    with h5py.File(file) as pictures:
        return Image.fromarray(pictures["x"][index])
