"""Makes many local pairs of 256 px from real images, as tars with KEY.jpg and KEY.json.

    python benchmarks/collect/many.py DATA DRAWINGS FOLDER [--pairs 20000] [--per-tar 1000]

Every image is a rotated and tinted crop of a real one, so that few look alike; every caption joins real names.
DRAWINGS is explained in planted.py. `FOLDER/tars/` contains the tars, `FOLDER/files/` the same images as files,
`FOLDER/urls.parquet` their file:// URLs.
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


def captions(names: Sequence[Real], random: Random) -> dict[str, str]:
    """Three names in each language."""
    three = random.sample(names, 3)
    return {
        "zh": "、".join(one.zh[0] for one in three) + "的图片",
        "en": "a picture of " + " and ".join(one.en[0] for one in three),
    }


def write(data: Path, out: Path, drawn: Path, pairs: int, per_tar: int) -> None:
    """Fill the folder; the same arguments give the same bytes."""
    random = Random(0)
    real = pool(data)
    pictures = [one for one in real.clean if one.photo] + drawings(drawn)
    opened = [flatten(decode(one.image)) for one in pictures]
    names = [one for one in real.clean if one.zh and one.en]
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
                for suffix, content in (("jpg", image), ("json", json.dumps(said, ensure_ascii=False).encode())):
                    member = tarfile.TarInfo(f"{number:07d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    pq.write_table(pa.Table.from_pylist(rows), out / "urls.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--per-tar", type=int, default=1_000)
    options = parser.parse_args()
    write(options.data, options.out, options.drawings, options.pairs, options.per_tar)


if __name__ == "__main__":
    main()
