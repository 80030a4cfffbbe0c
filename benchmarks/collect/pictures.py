"""Real pairs for the benchmarks: emoji drawings and photographs.

A pair is clean if no earlier image has the same pixels and no earlier caption the same letters. Nothing else is
considered, so that no filter of `collect` influences what counts as clean.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

# One style per design. The fluent styles are left out: the large drawings show the same.
STYLES = ("noto", "twemoji", "openmoji", "emojione2", "fxemoji", "noto-v1", "emojione1")


@dataclass(frozen=True)
class Real:
    """A real image with its captions; `photo` if it is large enough to be cropped and resized."""

    image: bytes
    zh: tuple[str, ...] = ()
    en: tuple[str, ...] = ()
    photo: bool = False


@dataclass(frozen=True)
class Pool:
    """`clean`: distinct images with distinct captions; `spare`: other distinct images, in which faults are planted."""

    clean: list[Real]
    spare: list[Real]


def emoji(tar: Path) -> Iterator[tuple[str, Real, Real]]:
    """Every drawing of a style: its code points, itself with its names, itself with its keywords as captions."""
    with tarfile.open(tar) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    for name in sorted(name for name in files if name.endswith(".json")):
        facts = json.loads(files[name])
        image = files[name.removesuffix("json") + "webp"]
        words = Real(image, ("、".join(facts["zh_kw"]),), (", ".join(facts["en_kw"]),))
        yield name.removesuffix(".json").partition("_")[2], Real(image, (facts["zh"],), (facts["en"],)), words


def photos(data: Path) -> Iterator[Real]:
    """The photographs with their ImageNet class names; class folders are in the order of the names' lines."""
    zh, en = ((data / "imagenet-zh" / f"{name}.txt").read_text("utf-8").splitlines() for name in ("chinese-clip", "en"))
    for number, path in enumerate(sorted((data / "photos/val").glob("*/*.jpg"))):
        yield Real(path.read_bytes(), (f"一张{zh[5 * number]}的照片",), (f"a photo of a {en[5 * number]}",), photo=True)


def drawings(folder: Path) -> list[Real]:
    """256 px drawings named by code points, one for each first code point: without variants of skin or gender."""
    first = {path.stem.partition("-")[0]: path for path in sorted(folder.glob("*.webp"), reverse=True)}
    return [Real(path.read_bytes(), photo=True) for path in first.values()]


def pixels(image: bytes) -> bytes:
    """A hash that is equal if and only if the pixels are."""
    with Image.open(io.BytesIO(image)) as opened:
        shown = opened.convert("RGBA")
    return hashlib.sha256(repr(shown.size).encode() + shown.tobytes()).digest()


def letters(text: str) -> str:
    """The letters and digits of a text, equal for "clown face" and "Clown, face"."""
    return "".join(letter for letter in text.casefold() if letter.isalnum()) or text


def pool(data: Path, styles: tuple[str, ...] = STYLES) -> Pool:
    """All real pairs under `data`, in an order that depends only on the files."""
    candidates = list(photos(data))
    used: set[str] = set()
    for style in styles:
        for code, named, worded in emoji(data / f"emoji/{style}.tar"):
            candidates.append(worded if code in used else named)
            used.add(code)
    return distinct(candidates)


def distinct(candidates: Iterable[Real]) -> Pool:
    """Each image and each caption once, at its first occurrence."""
    clean, spare = [], []
    seen: set[bytes] = set()
    texts: set[str] = set()
    for real in candidates:
        if (hashed := pixels(real.image)) in seen:
            continue
        seen.add(hashed)
        zh, en = (tuple(text for text in side if letters(text) not in texts) for side in (real.zh, real.en))
        texts |= {letters(text) for text in (*zh, *en)}
        (clean if zh or en else spare).append(replace(real, zh=zh, en=en))
    return Pool(clean, spare)
