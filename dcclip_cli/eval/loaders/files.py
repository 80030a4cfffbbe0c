"""Class folders (SPLIT/CLASS/*.jpg) and WebDataset tars (SPLIT/0.tar)."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.data.class_folders import folders_in, images_by_class
from dcclip_cli.data.reading import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Fault, Member, tar_members
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval.dataset import DOWNLOAD_AGAIN, Captions, Images, Loaded, Loader, Location, fingerprint_of, lines_of

_SUFFIXES = (*IMAGE_SUFFIXES, ".ppm")
_TRUTH_SUFFIX = {"classification": ".cls", "multi-label": ".npy", "retrieval": ".txt"}
_Span = tuple[Path, int, int]  # a tar, the offset in it, the size in bytes


@dataclass(frozen=True)
class ClassFolders(Loader):
    """Folders named by the classes' keys (ImageNet: wnids), their English names, or their numbers."""

    location: Location
    folder: Path
    layout = "SPLIT/CLASS/*.jpg"

    @classmethod
    def find(cls, location: Location) -> ClassFolders | None:
        if location.known.task != "classification":
            return None
        for root in location.folders:
            for split in location.split_names:
                if folders_in(root / split):
                    return cls(location, root / split)
            if any(location.classes.of_folder(folder.name) is not None for folder in folders_in(root)):
                return cls(location, root)
        return None

    @property
    def by_folder(self) -> dict[str, list[Path]]:
        """Folder name -> its image files. Raises DcclipError where there are none."""
        return images_by_class(self.folder, _SUFFIXES)

    def load(self) -> Loaded:
        """The images, class by class. Raises DcclipError for an unknown folder, and for a class without images."""
        classes, known = self.location.classes, self.location.known
        by_folder = self.by_folder
        numbers = {folder: classes.of_folder(folder) for folder in by_folder}
        unknown = [folder for folder, number in numbers.items() if number is None]
        if unknown and not known.extra_folders:
            what = Message(
                "{} is not a class of {} ({} such folders)", self.folder / unknown[0], known.label, len(unknown)
            )
            raise DcclipError(what, "class folders have names like {}", classes.folders[0])
        by_number: dict[int, list[Path]] = {}
        for folder, number in numbers.items():
            if number in by_number:
                raise DcclipError("{} is a second folder of one class", "keep one of the two", self.folder / folder)
            if number is not None:
                by_number[number] = by_folder[folder]
        lacking = [key for number, key in enumerate(classes.folders) if number not in by_number]
        if lacking and not self.location.partial:
            raise DcclipError(
                "{}: {} of {} classes have no images, {} for one",
                "finish the download; to evaluate the classes that are there, add --partial present",
                self.folder,
                len(lacking),
                len(classes.folders),
                lacking[0],
            )
        files = [(file, number) for number in sorted(by_number) for file in by_number[number]]
        return Loaded(image_files([file for file, _ in files], self.folder), np.asarray([label for _, label in files]))


def image_files(files: list[Path], folder: Path) -> Images:
    """Image files under a folder, named by their paths in it."""
    names = [os.fsencode(file.relative_to(folder)).decode("utf-8", "backslashreplace") for file in files]
    return Images(names, files.__getitem__, fingerprint_of(files))


@dataclass(frozen=True)
class WebDatasetTars(Loader):
    """Tars as `clip-benchmark/wds_*` on the hub has them: KEY.jpg|webp|png with KEY.cls, KEY.npy or KEY.txt.

    Members are read in place: nothing is unpacked, no name in a tar is used as a path.
    """

    location: Location
    root: Path
    shards: tuple[Path, ...]
    layout = "SPLIT/0.tar"

    @classmethod
    def find(cls, location: Location) -> WebDatasetTars | None:
        for root in location.folders:
            for folder in (root / location.split, root / "test", root):
                if shards := sorted(folder.glob("*.tar"), key=lambda file: (len(file.name), file.name)):
                    return cls(location, root, tuple(shards))
        return None

    def load(self) -> Loaded:
        """All samples, in the order of the tars. Raises DcclipError for a truncated tar and a missing label."""
        if not self.location.partial:
            self._check_count()
        samples = [sample for shard in self.shards for sample in self._samples(shard)]
        spans = [image for _, image, _ in samples]
        images = Images(
            [key for key, _, _ in samples],
            lambda index: _bytes(spans[index], MAX_IMAGE_BYTES),
            fingerprint_of(self.shards),
        )
        if self.location.known.task == "retrieval":
            return Loaded(images, Captions.of_images(lines_of(truth) for _, _, truth in samples))
        count = len(self.location.classes.folders)
        if self.location.known.task == "multi-label":
            return Loaded(images, np.stack([_truth_values(key, truth, count) for key, _, truth in samples]))
        labels = np.asarray([_label(key, truth, count) for key, _, truth in samples])
        names, known = self.root / "classnames.txt", self.location.known
        if names.is_file():
            labels = self.location.classes.order(lines_of(names), str(names), known.own_order)[labels]
        elif not known.own_order:
            raise DcclipError(
                "{} has no classnames.txt: its labels cannot be read", "download that file too", self.root
            )
        return Loaded(images, labels)

    def _samples(self, shard: Path) -> list[tuple[str, _Span, bytes]]:
        wanted = _TRUTH_SUFFIX[self.location.known.task]
        images: dict[str, Member] = {}
        truths: dict[str, Member] = {}
        for member in tar_members(shard):
            if member.fault is not None:
                raise DcclipError("{}: {}: {}", DOWNLOAD_AGAIN, shard, member.name or "the tar", member.fault.detail)
            stem, dot, suffix = member.name.rpartition(".")
            role = (dot + suffix).lower()
            if role in IMAGE_SUFFIXES:
                images[stem] = member
            elif role == wanted:
                truths[stem] = member
        if alone := sorted(images.keys() ^ truths.keys()):
            what = Message("no {} file", wanted) if alone[0] in images else Message("no image")
            raise DcclipError("{}: {} has {} ({} such samples)", DOWNLOAD_AGAIN, shard, alone[0], what, len(alone))
        spans = [{key: (shard, one.offset, one.size) for key, one in role.items()} for role in (images, truths)]
        return [(key, spans[0][key], _bytes(spans[1][key], MAX_TEXT_BYTES)) for key in images]

    def _check_count(self) -> None:
        file = self.shards[0].parent / "nshards.txt"
        count = file.read_text("utf-8", "replace").strip() if file.is_file() else ""
        if count and count != str(len(self.shards)):
            what = Message("{} has {} tars, nshards.txt says {}", self.shards[0].parent, len(self.shards), count)
            raise DcclipError(what, "finish the download")


def _bytes(span: _Span, limit: int) -> bytes:
    file, offset, size = span
    if size > limit:
        raise Fault("image-bytes", f"more than {limit:,} bytes")
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _label(key: str, content: bytes, count: int) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= count:
        raise DcclipError("{}.cls has {!r}, not a class from 0 to {}", DOWNLOAD_AGAIN, key, text[:20], count - 1)
    return int(text)


def _truth_values(key: str, content: bytes, count: int) -> np.ndarray:
    try:
        vector = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DcclipError("{}.npy cannot be read: {}", DOWNLOAD_AGAIN, key, error) from None
    if vector.shape != (count,):
        raise DcclipError("{}.npy has the shape {}, not ({},)", DOWNLOAD_AGAIN, key, vector.shape, count)
    return vector > 0
