"""Test images in WebDataset tars, as `clip-benchmark/wds_*` has them on the hub and `clip_benchmark_export_wds` writes.

NAME/classnames.txt, NAME/SPLIT/nshards.txt, NAME/SPLIT/0.tar: KEY.jpg|webp|png with KEY.cls, KEY.npy or KEY.txt
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dcclip_cli.data.files.reading import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Fault, Member, members
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.labels import ClassKeys
from dcclip_cli.eval.loaders.base import AGAIN, Captioned, Images, Labelled, Loader, Place, stamp_of

_TRUTH = {"classification": ".cls", "multi-label": ".npy", "retrieval": ".txt"}
_At = tuple[Path, int, int]  # a tar, the offset in it, how many bytes


@dataclass(frozen=True)
class WebDatasetTars(Loader):
    """Members are read where they stand: nothing is unpacked, no name in a tar is used as a path."""

    place: Place
    root: Path
    shards: tuple[Path, ...]
    layout = "SPLIT/0.tar"

    @classmethod
    def find(cls, place: Place) -> WebDatasetTars | None:
        for root in place.folders:
            for folder in (root / place.split, root / "test", root):
                if shards := sorted(folder.glob("*.tar"), key=lambda file: (len(file.name), file.name)):
                    return cls(place, root, tuple(shards))
        return None

    def load(self) -> Labelled | Captioned:
        """All samples, in the order of the tars. Raises DcclipError for a tar that is cut or lacks a label."""
        self._check_count()
        keys: list[str] = []
        images: list[_At] = []
        truths: list[bytes] = []
        for shard in self.shards:
            for key, image, truth in self._samples(shard):
                keys.append(key)
                images.append(image)
                truths.append(truth)

        found = Images(keys, partial(_image, images), stamp_of(self.shards))
        if self.place.known.task == "retrieval":
            texts = [(line, (number,)) for number, truth in enumerate(truths) for line in _captions(truth)]
            return Captioned(found, tuple(text for text, _ in texts), tuple(about for _, about in texts))
        return Labelled(found, self._labels(keys, truths))

    def _samples(self, shard: Path) -> list[tuple[str, _At, bytes]]:
        wanted = _TRUTH[self.place.known.task]
        images: dict[str, Member] = {}
        truths: dict[str, Member] = {}
        for member in members(shard):
            if member.fault is not None:
                raise DcclipError(f"{shard}: {member.name or 'the tar'}: {member.fault.detail}", AGAIN)
            stem, dot, suffix = member.name.rpartition(".")
            role = (dot + suffix).lower()
            if role in IMAGE_SUFFIXES:
                images[stem] = member
            elif role == wanted:
                truths[stem] = member
        if alone := sorted(images.keys() ^ truths.keys()):
            what = f"no {wanted} file beside it" if alone[0] in images else "no image beside it"
            raise DcclipError(f"{shard}: {alone[0]} has {what} ({len(alone)} such samples)", AGAIN)
        return [
            (
                key,
                (shard, image.offset, image.size),
                _bytes((shard, truths[key].offset, truths[key].size), MAX_TEXT_BYTES),
            )
            for key, image in images.items()
        ]

    def _labels(self, keys: list[str], truths: list[bytes]) -> np.ndarray:
        assert self.place.prompts is not None
        count = len(self.place.prompts.folders)
        if self.place.known.task == "multi-label":
            return np.stack([_vector(key, truth, count) for key, truth in zip(keys, truths, strict=True)])
        labels = np.asarray([_number(key, truth, count) for key, truth in zip(keys, truths, strict=True)])
        order = self._order()
        return labels if order is None else order[labels]

    def _order(self) -> np.ndarray | None:
        """Our number for each of theirs, where they differ. Raises DcclipError where a list is in the wrong order."""
        file = self.root / "classnames.txt"
        assert self.place.prompts is not None
        if not file.is_file():
            if not self.place.known.own_order:
                raise DcclipError(f"{self.root} has no classnames.txt, so its labels can't be read", "fetch that too")
            return None
        said = [line.strip() for line in file.read_text("utf-8-sig", "replace").splitlines() if line.strip()]
        keys = ClassKeys(self.place.prompts)
        if not self.place.known.own_order:
            return keys.mapping(said, str(file))
        keys.check_order(said, str(file))
        return None

    def _check_count(self) -> None:
        file = self.shards[0].parent / "nshards.txt"
        said = file.read_text("utf-8", "replace").strip() if file.is_file() else ""
        if said and said != str(len(self.shards)):
            raise DcclipError(
                f"{self.shards[0].parent} has {len(self.shards)} tars, nshards.txt says {said}", "finish the download"
            )


def _image(images: list[_At], index: int) -> bytes:
    return _bytes(images[index], MAX_IMAGE_BYTES)


def _bytes(at: _At, limit: int) -> bytes:
    file, offset, size = at
    if size > limit:
        raise Fault("image-bytes", f"more than {limit:,} bytes")
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _number(key: str, content: bytes, count: int) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= count:
        raise DcclipError(f"{key}.cls says {text[:20]!r}, not a class from 0 to {count - 1}", AGAIN)
    return int(text)


def _vector(key: str, content: bytes, count: int) -> np.ndarray:
    try:
        vector = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DcclipError(f"{key}.npy can't be read: {error}", AGAIN) from None
    if vector.shape != (count,):
        raise DcclipError(f"{key}.npy has the shape {vector.shape}, not ({count},)", AGAIN)
    return vector > 0


def _captions(content: bytes) -> list[str]:
    return [line.strip() for line in content.decode("utf-8-sig", "replace").splitlines() if line.strip()]
