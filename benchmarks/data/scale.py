"""Start, memory and resuming of `align` on 10,000, one million and ten million pairs.

    python benchmarks/data/scale.py make WORK [--tars 100]        # 1 M pairs, 3 GB; 10 M: hard links, index files copied
    python benchmarks/data/scale.py index WORK                    # seconds that the index of 1 M pairs takes
    python benchmarks/data/scale.py start WORK [--batch 128 1024] # command to first step, by the number of pairs
    python benchmarks/data/scale.py memory WORK [--steps 1000]    # private memory of main process and workers
    python benchmarks/data/scale.py resume WORK                   # command to first step, from the middle of an epoch

Images are JPEG files of 64 px and 1.25 KB, 10,000 in a tar, each with a Chinese and an English caption; no two pairs of
the million are equal. The model is tiny: what is measured is everything else. CPU seconds are those of all processes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

PER_TAR = 10_000
SIDE, QUALITY, IMAGES = 64, 48, 500  # quality: 1.25 KB a file
SIZES = {"10k": 1, "1M": 100, "10M": 1_000}  # tars
INDEX = ".index.arrow"
MODEL = "model/align/model"  # in WORK


# ---- data


def make(work: Path, tars: int) -> None:
    """Write `tars` tars, and folders of links to them: data-10k, data-1M, data-10M."""
    folder = work / "data-1M"
    folder.mkdir(parents=True, exist_ok=True)
    with Pool(2) as pool:
        pool.map(_tar, [folder / f"{number:05}.tar" for number in range(tars)], chunksize=1)
    for name, count in SIZES.items():
        (work / f"data-{name}").mkdir(exist_ok=True)
        for number in range(min(count, 10 * tars)):
            target = work / f"data-{name}/{number:05}.tar"
            if not target.exists():
                os.link(folder / f"{number % tars:05}.tar", target)


def _tar(path: Path) -> None:
    if path.exists():
        return
    number, images, words = int(path.stem), _images(), _words()
    random = np.random.default_rng(number)
    english = random.zipf(1.2, (PER_TAR, 12)) % len(words)
    chinese = random.integers(0x4E00, 0x4E00 + 3_000, (PER_TAR, 15))
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in range(PER_TAR):
            key = f"{number:05}{row:05}"
            record = {"en": " ".join(words[word] for word in english[row]), "zh": "".join(map(chr, chinese[row]))}
            image = images[int(random.integers(len(images)))]
            comment = b"\xff\xfe\0\x0c" + key.encode()  # a JPEG comment: no two files are equal
            for suffix, content in (
                ("jpg", image[:2] + comment + image[2:]),
                ("json", json.dumps(record, ensure_ascii=False).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    partial.replace(path)


def _images() -> list[bytes]:
    random = np.random.default_rng(0)
    files = []
    for _ in range(IMAGES):
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=QUALITY)
        files.append(stream.getvalue())
    return files


def _words() -> list[str]:
    random = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfw"))
    return ["".join(random.choice(letters, int(random.integers(2, 10)))) for _ in range(20_000)]


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
