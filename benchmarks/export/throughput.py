"""How near `dcclip predict` on a folder comes to what this machine can do at all: decoding alone, or the model alone.

python benchmarks/export/throughput.py BUNDLE [--images 2000] [--side 640]

The pictures are JPEGs of noise, smoothed to look like photographs to a decoder. "decoding" is reading, decoding and
preprocessing them on as many threads as there are processors; "model" is the image tower on preprocessed input, on as
many threads; "both" is what is possible if neither waits for the other, since the processors do both.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageFilter

from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.bundle import Bundle
from dcclip_cli.predict.embedding import BATCH_SIZE
from dcclip_cli.predict.predict import predict


def pictures(folder: Path, count: int, side: int) -> list[Path]:
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        if number < 20:
            noise = random.integers(0, 256, (side * 3 // 4 // 8, side // 8, 3), np.uint8)
            image = Image.fromarray(noise).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
            image = image.filter(ImageFilter.UnsharpMask(1))
            image.save(folder / f"{number:05}.jpg", quality=90)
        else:
            (folder / f"{number:05}.jpg").write_bytes((folder / f"{number % 20:05}.jpg").read_bytes())
        paths.append(folder / f"{number:05}.jpg")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=640)
    given = parser.parse_args()
    model, cores = Bundle(given.bundle, "cpu"), os.cpu_count() or 1
    with TemporaryDirectory() as temporary:
        paths = pictures(Path(temporary), given.images, given.side)

        begin = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            for _ in pool.map(lambda path: model.preprocess(decode(path)), paths):
                pass
        decoding = len(paths) / (time.perf_counter() - begin)

        batch = np.stack([model.preprocess(decode(path)) for path in paths[:BATCH_SIZE]])
        rounds = max(1, len(paths) // BATCH_SIZE)
        begin = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            for _ in pool.map(lambda _: model.encode_pixels(batch), range(rounds)):
                pass
        inference = rounds * BATCH_SIZE / (time.perf_counter() - begin)

        begin = time.perf_counter()
        reference = resolve(str(given.bundle))
        found = sum(1 for _ in predict(model=reference, images=paths, labels=["猫", "dog", "汽车"], device="cpu"))
        whole = found / (time.perf_counter() - begin)
    bound = min(decoding, inference)
    both = 1 / (1 / decoding + 1 / inference)
    print(f"{cores} cores, {len(paths)} JPEGs of {given.side} x {given.side * 3 // 4}, {model.name}")
    print(f"decoding {decoding:.0f}/s, model {inference:.0f}/s, both {both:.0f}/s, dcclip predict {whole:.0f}/s")
    print(f"{whole / bound:.0%} of what binds, {whole / both:.0%} of both")


if __name__ == "__main__":
    main()
