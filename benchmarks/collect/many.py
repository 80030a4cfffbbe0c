"""Makes many local pairs from real images, as tars with KEY.jpg and KEY.json.

    python benchmarks/collect/many.py DATA DRAWINGS FOLDER [--pairs 20000] [--per-tar 1000]
    python benchmarks/collect/many.py DATA DRAWINGS FOLDER --small --pairs 1000000 --per-tar 5000

Every image is a rotated and tinted crop of a real one, so that few look alike; every caption joins real names.
DRAWINGS is explained in planted.py. `FOLDER/tars/` contains the tars, `FOLDER/files/` the same images as files,
`FOLDER/urls.parquet` their file:// URLs. With `--small` there are only tars, and every image is two parts of real ones
on top of each other, of 48 px: a million of them differ from each other as those of the web do. Full tars that are
there are not made again.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from faults import save
from pictures import Real, drawings, pool
from PIL import Image, ImageOps

from dcclip_cli.model.preprocess import decode, flatten

SIDE = 256
SMALL_SIDE = 48


def picture(image: Image.Image, random: Random) -> bytes:
    """A part of the image, mirrored, tilted and tinted, as a JPEG of 256 px."""
    share = random.uniform(0.5, 0.9)
    width, height = int(image.width * share), int(image.height * share)
    left, top = random.randrange(image.width - width + 1), random.randrange(image.height - height + 1)
    part = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    part = part.rotate(random.choice((0, 90, 180, 270)) + random.uniform(-15, 15), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        part = ImageOps.mirror(part)
    tint = Image.new("RGB", part.size, tuple(random.randrange(256) for _ in range(3)))
    return save(Image.blend(part, tint, random.uniform(0, 0.4)), "JPEG", quality=85)


def small_picture(images: Sequence[Image.Image], random: Random) -> bytes:
    """Parts of two images on top of each other, as a JPEG of 48 px."""
    parts = []
    for image in random.sample(images, 2):
        width, height = (side * random.uniform(0.4, 0.9) for side in image.size)
        left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        part = image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BILINEAR, box, reducing_gap=2)
        parts.append(part.transpose(random.choice(list(Image.Transpose))))
    return save(Image.blend(*parts, random.uniform(0.3, 0.7)), "JPEG", quality=80)


def captions(names: Sequence[Real], random: Random) -> dict[str, str]:
    """Three names in each language."""
    three = random.sample(names, 3)
    return {
        "zh": "、".join(one.zh[0] for one in three) + "的图片",
        "en": "a picture of " + " and ".join(one.en[0] for one in three),
    }


def write_small(opened: Sequence[Image.Image], names: Sequence[Real], out: Path, pairs: int, per_tar: int) -> None:
    """Fill the folder with small pairs; more of them begin with the same bytes, so a smaller folder is continued."""
    (out / "tars").mkdir(parents=True, exist_ok=True)
    for start in range(0, pairs, per_tar):
        tar = out / f"tars/{start // per_tar:05d}.tar"
        if tar.exists():
            continue
        random = Random(start)
        with tarfile.open(part := tar.with_suffix(".part"), "w") as archive:
            for number in range(start, min(start + per_tar, pairs)):
                _add(archive, f"{number:07d}", small_picture(opened, random), captions(names, random))
        part.rename(tar)


def _add(archive: tarfile.TarFile, key: str, image: bytes, said: dict[str, str]) -> None:
    for suffix, content in (("jpg", image), ("json", json.dumps(said, ensure_ascii=False).encode())):
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def write(opened: Sequence[Image.Image], names: Sequence[Real], out: Path, pairs: int, per_tar: int) -> None:
    """Fill the folder; the same arguments give the same bytes."""
    random = Random(0)
    for folder in ("tars", "files"):
        (out / folder).mkdir(parents=True)
    rows = []
    for start in range(0, pairs, per_tar):
        with tarfile.open(out / f"tars/{start // per_tar:05d}.tar", "w") as archive:
            for number in range(start, min(start + per_tar, pairs)):
                image, said = picture(random.choice(opened), random), captions(names, random)
                file = out / f"files/{number:07d}.jpg"
                file.write_bytes(image)
                rows.append({"url": file.resolve().as_uri(), "caption": said["en"], **said})
                _add(archive, f"{number:07d}", image, said)
    pq.write_table(pa.Table.from_pylist(rows), out / "urls.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--per-tar", type=int, default=1_000)
    parser.add_argument("--small", action="store_true", help="pictures of 48 px, in tars only")
    options = parser.parse_args()
    real = pool(options.data)
    pictures = [one for one in real.clean if one.photo] + drawings(options.drawings)
    opened = [flatten(decode(one.image)) for one in pictures]
    names = [one for one in real.clean if one.zh and one.en]
    (write_small if options.small else write)(opened, names, options.out, options.pairs, options.per_tar)


if __name__ == "__main__":
    main()
