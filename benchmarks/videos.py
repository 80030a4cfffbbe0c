"""Whether `dcclip search` finds the second of a video that shows a known photograph, and what a
long video takes.

    python benchmarks/videos.py PAIRS [--model MODEL] [--codec libx264]

PAIRS have sentences in both languages. A video shows 60 photographs for 3 s each. Queries: 200
copies of them, smaller, cropped and compressed again, and 200 of their sentences, for which the
photograph is right that is the best for the sentence among the photographs themselves. Prints how
many of the found times are within 1 s of the photograph, and how often a search among the
photographs themselves finds the right one. Then indexes a video of 200 photographs, 10 minutes of
1280 x 720 pixels.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.inference.model import load
from dcclip_cli.model.preprocess import decode
from dcclip_cli.photos.index import open_index

PHOTOS, QUERIES, SHOWN_S, RATE = 60, 200, 3, 10


def film(file: Path, photos: list[Image.Image], size: tuple[int, int], codec: str) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream(
            codec, rate=RATE, options={} if codec == "mpeg4" else {"preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 2_000_000
        for number, photo in enumerate(photos):
            picture = av.VideoFrame.from_image(photo.resize(size))
            for place in range(SHOWN_S * RATE):
                picture.pts, picture.time_base = number * SHOWN_S * RATE + place, Fraction(1, RATE)
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def copied(photo: Image.Image, number: int, folder: Path) -> Path:
    """A copy as photographs are sent: smaller, cropped by up to 5 %, compressed again."""
    side, file = 0.05 * (number % 3) / 2, folder / f"{number}.jpg"
    box = [round(side * length) for length in photo.size]
    copy = photo.crop((*box, photo.width - box[0], photo.height - box[1]))
    copy.resize(
        (max(1, copy.width // (1 + number % 2)), max(1, copy.height // (1 + number % 2)))
    ).save(file, quality=(80, 60, 40)[number % 3])
    return file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--codec", default="libx264")
    options = parser.parse_args()
    model = load(options.model)
    pairs = list(open_pairs(options.pairs))
    pairs = pairs[:: len(pairs) // 200][:200]
    photos = [ImageOps.fit(decode(pair.image).convert("RGB"), (640, 480)) for pair in pairs]
    with tempfile.TemporaryDirectory() as name:
        folder, copies, long = Path(name, "videos"), Path(name, "copies"), Path(name, "long")
        for path in (folder, copies, long):
            path.mkdir()
        os.environ["DCCLIP_CACHE"] = str(Path(name, "cache"))
        film(folder / "a.mp4", photos[:PHOTOS], (640, 480), options.codec)
        begin = time.perf_counter()
        index = open_index(model._encoder, folder)
        print(
            f"{SHOWN_S * PHOTOS} s of video: {len(index.paths)} frames in "
            f"{time.perf_counter() - begin:.1f} s"
        )

        def share(queries: np.ndarray, right: list[int]) -> str:
            hits = [index.search(query, 1)[0].time_s or 0.0 for query in queries]
            near = [
                SHOWN_S * number - 1 <= hit <= SHOWN_S * (number + 1) + 1
                for hit, number in zip(hits, right, strict=True)
            ]
            return f"{sum(near)} of {len(near)} ({np.mean(near):.1%})"

        numbers = [number % PHOTOS for number in range(QUERIES)]
        files = [copied(photos[photo], number, copies) for number, photo in enumerate(numbers)]
        copied_vectors, vectors = model.embed_images(files), model.embed_images(photos[:PHOTOS])
        print("copies of the photographs:", share(copied_vectors, numbers), end="; ")
        print(
            f"among the photographs: "
            f"{np.mean((copied_vectors @ vectors.T).argmax(axis=1) == numbers):.1%}"
        )
        sentences = [
            text
            for pair in pairs[:PHOTOS]
            for text in (pair.en[0], pair.zh[0], *pair.en[1:2], *pair.zh[1:2])
        ]
        texts = model.embed_texts(sentences[:QUERIES])
        best = (texts @ vectors.T).argmax(axis=1)
        print("sentences:", share(texts, best.tolist()))
        film(long / "b.mp4", photos, (1280, 720), options.codec)
        before_mb, begin = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            time.perf_counter(),
        )
        index = open_index(model._encoder, long)
        seconds, peak_mb = (
            time.perf_counter() - begin,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        print(
            f"{SHOWN_S * len(photos) / 60:.0f} min: {len(index.paths)} frames in {seconds:.1f} s; ",
            end="",
        )
        print(f"memory {before_mb:.0f} MB before, at most {peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
