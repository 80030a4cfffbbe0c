"""CIFAR-10 and CIFAR-100 in their binary version. The Python version is pickled, and nothing is unpickled here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.labels import ClassKeys
from dcclip_cli.eval.loaders.base import Images, Labelled, Loader, Place, stamp_of

_PIXELS = 3 * 32 * 32
_TRAIN10 = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


@dataclass(frozen=True)
class _Version:
    """Where a CIFAR's files are, how many label bytes come before each picture (the last one counts), its names."""

    folder: str
    pickled: str
    test: tuple[str, ...]
    train: tuple[str, ...]
    label_bytes: int
    names: str


_VERSIONS = {
    "cifar10": _Version(
        "cifar-10-batches-bin", "cifar-10-batches-py", ("test_batch.bin",), _TRAIN10, 1, "batches.meta.txt"
    ),
    "cifar100": _Version(
        "cifar-100-binary", "cifar-100-python", ("test.bin",), ("train.bin",), 2, "fine_label_names.txt"
    ),
}


@dataclass(frozen=True)
class CifarBinary(Loader):
    """`cifar-10-batches-bin` or `cifar-100-binary`, from the page of the data sets' authors."""

    place: Place
    folder: Path
    layout = "cifar-10-batches-bin"

    @classmethod
    def find(cls, place: Place) -> CifarBinary | None:
        version = _VERSIONS.get(place.known.name)
        if version is None:
            return None
        for root in place.roots:
            if (root / version.folder).is_dir():
                return cls(place, root / version.folder)
        for root in place.roots:
            if (root / version.pickled).is_dir():
                archive = version.folder.removesuffix("-batches-bin").removesuffix("-binary") + "-binary.tar.gz"
                raise DcclipError(
                    f"{root / version.pickled} is pickled, and nothing of a user's is unpickled",
                    f"fetch {archive} from https://www.cs.toronto.edu/~kriz/cifar.html, or the data set's tars",
                )
        return None

    def load(self) -> Labelled:
        assert self.place.prompts is not None
        version = _VERSIONS[self.place.known.name]
        files = [self.folder / name for name in (version.train if self.place.split == "train" else version.test)]
        if absent := [file for file in files if not file.is_file()]:
            raise DcclipError(f"{absent[0]} is missing", "finish the download")
        row = version.label_bytes + _PIXELS
        content = b"".join(file.read_bytes() for file in files)
        if not content or len(content) % row:
            raise DcclipError(
                f"{files[0]} is cut: {len(content):,} bytes are not a whole number of pictures", "fetch it again"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, row)
        names = self.folder / version.names
        if names.is_file():
            said = [line.strip() for line in names.read_text("utf-8").splitlines() if line.strip()]
            ClassKeys(self.place.prompts).check_order(said, str(names))

        labels = rows[:, version.label_bytes - 1].astype(int)
        read = partial(_picture, rows[:, version.label_bytes :])
        return Labelled(Images([str(number) for number in range(len(rows))], read, stamp_of(files)), labels)


def _picture(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index].reshape(3, 32, 32).transpose(1, 2, 0))
