"""Published archives: CIFAR's binary version and the folders that torchvision.datasets downloads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.dataset import Images, Loaded, Loader, Location, fingerprint_of, lines_of, missing_images
from dcclip_cli.eval.loaders.files import image_files

_CIFAR_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _CifarVersion:
    """A CIFAR's folders and files. `label_bytes` precede each image; the last one is its class."""

    folder: str
    pickled: str
    archive: str
    test: tuple[str, ...]
    train: tuple[str, ...]
    label_bytes: int
    names: str


_CIFARS = {
    "cifar10": _CifarVersion(
        "cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", ("test_batch.bin",),
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)), 1, "batches.meta.txt",
    ),
    "cifar100": _CifarVersion(
        "cifar-100-binary", "cifar-100-python", "cifar-100-binary.tar.gz", ("test.bin",), ("train.bin",), 2,
        "fine_label_names.txt",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class CifarBinary(Loader):
    """`cifar-10-batches-bin` or `cifar-100-binary`. The Python version is pickled, and nothing is unpickled here."""

    location: Location
    folder: Path
    layout = "cifar-10-batches-bin"

    @classmethod
    def find(cls, location: Location) -> CifarBinary | None:
        version = _CIFARS.get(location.known.name)
        if version is None:
            return None
        folders = [root / name for name in (version.folder, version.pickled) for root in location.roots]
        found = next((folder for folder in folders if folder.is_dir()), None)
        if found and found.name == version.pickled:
            raise DcclipError(
                f"{found} is pickled, and dcclip unpickles no user's file",
                f"download {version.archive} from https://www.cs.toronto.edu/~kriz/cifar.html, or the data set's tars",
            )
        return cls(location, found) if found else None

    def load(self) -> Loaded:
        version = _CIFARS[self.location.known.name]
        files = [self.folder / name for name in (version.train if self.location.split == "train" else version.test)]
        if absent := [file for file in files if not file.is_file()]:
            raise DcclipError(f"{absent[0]} is missing", "finish the download")
        row = version.label_bytes + _CIFAR_PIXELS
        content = b"".join(file.read_bytes() for file in files)
        if not content or len(content) % row:
            raise DcclipError(
                f"{files[0]} is truncated: {len(content):,} bytes are not a whole number of images", "download it again"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, row)
        names = self.folder / version.names
        if names.is_file():
            self.location.classes.check_order(lines_of(names), str(names))
        read = partial(_cifar_image, rows[:, version.label_bytes :])
        images = Images([str(number) for number in range(len(rows))], read, fingerprint_of(files))
        return Loaded(images, rows[:, version.label_bytes - 1].astype(int))


def _cifar_image(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index].reshape(3, 32, 32).transpose(1, 2, 0))


@dataclass(frozen=True)
class TorchvisionFiles(Loader):
    """A folder that torchvision downloaded. It reads its own lists; images are decoded as in every data set."""

    location: Location
    roots: tuple[Path, ...]  # each may be the root that torchvision was given
    layout = "torchvision's own folder"

    @classmethod
    def find(cls, location: Location) -> TorchvisionFiles | None:
        about = location.known.torchvision
        if about is None:
            return None
        roots = tuple(root for root in location.roots[::-1] if (root / about.folder).is_dir())
        return cls(location, roots) if roots else None

    def load(self) -> Loaded:
        """Raises DcclipError where torchvision finds its files incomplete."""
        found, root = self._open()
        name = type(found).__name__
        if name == "VOCDetection":
            return self._voc(found, root)
        by_name = {"PCAM": _pcam, "MNIST": _mnist}
        images, labels = by_name[name](found) if name in by_name else _image_list(found, root)
        classes, where = self.location.classes, f"torchvision's {name}"
        names = [str(one) for one in getattr(found, "classes", ())]
        if any(classes.find(one) is None for one in names):  # worded differently there
            classes.check_order(names, where)
        elif names:
            labels = classes.mapping(names, where)[labels]
        return Loaded(images, labels)

    def _open(self) -> tuple[Any, Path]:
        import torchvision.datasets

        about = self.location.known.torchvision
        assert about is not None
        arguments = about.train if self.location.split == "train" else about.test
        reason = ""
        for root in self.roots:
            try:
                return getattr(torchvision.datasets, about.name)(str(root), download=False, **arguments), root
            except (RuntimeError, OSError, ValueError) as error:
                reason = reason or str(error)
        reason = " ".join(reason.split()).removesuffix("You can use download=True to download it").strip()
        raise DcclipError(f"{self.roots[0] / about.folder}: torchvision says: {reason}", "finish the download")

    def _voc(self, found: Any, root: Path) -> Loaded:
        """The classes in each image, from ImageSets/Main; objects marked difficult count as absent."""
        folders = self.location.classes.folders
        files = [Path(name) for name in found.images]
        row_of = {file.stem: number for number, file in enumerate(files)}
        lists = files[0].parents[1] / "ImageSets" / "Main"
        labels = np.zeros((len(files), len(folders)), bool)
        for column, name in enumerate(folders):
            file = lists / f"{name.replace(' ', '')}_{found.image_set}.txt"
            if not file.is_file():
                raise DcclipError(f"{file} is missing: it lists the images that show {name}", "finish the download")
            for line in file.read_text("utf-8").splitlines():
                image, _, shown = line.partition(" ")
                if image in row_of:
                    labels[row_of[image], column] = shown.strip() == "1"
        return Loaded(image_files(files, root), labels)


def _image_list(found: Any, root: Path) -> tuple[Images, np.ndarray]:
    """Image files and label numbers, whichever attributes torchvision keeps them in."""
    if (samples := getattr(found, "_samples", getattr(found, "samples", None))) is not None:
        files, labels = [Path(file) for file, _ in samples], np.asarray([label for _, label in samples])
    else:
        paths = getattr(found, "_image_files", getattr(found, "_images", None))
        files, labels = [Path(file) for file in paths or ()], np.asarray(found._labels)
    if absent := [str(file) for file in files if not file.is_file()]:
        raise missing_images(absent, str(root))
    return image_files(files, root), labels


def _mnist(found: Any) -> tuple[Images, np.ndarray]:
    pixels, labels = np.asarray(found.data), np.asarray(found.targets)
    fingerprint = fingerprint_of(sorted(Path(found.raw_folder).iterdir()), len(labels))
    return Images([str(number) for number in range(len(labels))], partial(_row, pixels), fingerprint), labels


def _pcam(found: Any) -> tuple[Images, np.ndarray]:
    import h5py

    names = found._FILES[found._split]
    files = [Path(found._base_folder, names[kind][0]) for kind in ("images", "targets")]
    with h5py.File(files[1]) as targets:
        labels = np.asarray(targets["y"]).ravel().astype(int)
    keys = [str(number) for number in range(len(labels))]
    return Images(keys, partial(_patch, files[0]), fingerprint_of(files)), labels


def _row(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index])


def _patch(file: Path, index: int) -> Image.Image:
    import h5py

    with h5py.File(file) as images:
        return Image.fromarray(images["x"][index])
