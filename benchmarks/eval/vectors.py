"""Text-to-image recall with small embeddings: fewer dimensions, int8 and binary.

    python benchmarks/eval/vectors.py recipes/quickstart/validation.parquet runs/a/align/model runs/b/align/model
    python benchmarks/eval/vectors.py PHOTOS starter

The data is what `dcclip eval --dataset` takes. Each caption, or class name, is a query; it is answered if one of the
images that it belongs to is among the first k. Prints a row for each number of dimensions and type, the mean of the
models, and the share of the first ten images that whole fp32 embeddings find as well.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcclip_cli.data.collator import unaugmented
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.data.prompts import read
from dcclip_cli.eval.loaders.files import images_by_class
from dcclip_cli.model.preprocess import decode
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import Encoder, load_encoder
from dcclip_cli.predict.vectors import VECTOR_TYPES, VectorType, compressed, cut, nearest

RANKS = (1, 5, 10)
BATCH = 32


@dataclass(frozen=True)
class Queries:
    """The pixels of images (N, 3, H, W), and for each language the images that each text belongs to."""

    pixels: list[np.ndarray]
    images: dict[Language, dict[str, set[int]]]


def from_pairs(path: Path, model: Encoder) -> Queries:
    pairs = open_pairs(path)
    images: dict[Language, dict[str, set[int]]] = {language: defaultdict(set) for language in LANGUAGES}
    for language in LANGUAGES:
        for number, captions in enumerate(pairs.captions(language)):
            for caption in captions[:1]:
                images[language][caption].add(number)
    return Queries([model.preprocess(unaugmented(pairs, number)) for number in range(len(pairs))], images)


def from_photos(folder: Path, model: Encoder) -> Queries:
    """Class folders by ImageNet's wnids."""
    names, pixels = read("imagenet"), []
    images: dict[Language, dict[str, set[int]]] = {language: defaultdict(set) for language in LANGUAGES}
    for wnid, files in images_by_class(folder).items():
        for file in files:
            for language in LANGUAGES:
                images[language][names.names[language][names.folders.index(wnid)]].add(len(pixels))
            pixels.append(model.preprocess(decode(file)))
    return Queries(pixels, images)


def ranked(vectors: np.ndarray, kind: VectorType, queries: np.ndarray) -> list[list[int]]:
    """The first images for each query."""
    rows = compressed(vectors, kind)
    return [nearest(rows, kind, query, max(RANKS))[0].tolist() for query in queries]


Row = dict[tuple[Language, int], float]


def measure(model: Encoder, given: Queries, dims: Sequence[int]) -> dict[tuple[int, VectorType], Row]:
    parts = (np.stack(given.pixels[at : at + BATCH]) for at in range(0, len(given.pixels), BATCH))
    images = np.concatenate([model.encode_pixels(part) for part in parts])
    texts = {language: model.encode_texts(list(several)) for language, several in given.images.items()}
    whole = {language: ranked(images, "fp32", texts[language]) for language in LANGUAGES}
    found: dict[tuple[int, VectorType], Row] = {}
    for width in sorted({images.shape[1], *(one for one in dims if one < images.shape[1])}, reverse=True):
        for kind in VECTOR_TYPES:
            row: Row = {}
            for language in LANGUAGES:
                answers = ranked(cut(images, width), kind, cut(texts[language], width))
                right = list(given.images[language].values())
                for rank in RANKS:
                    hits = [bool(own & set(one[:rank])) for own, one in zip(right, answers, strict=True)]
                    row[language, rank] = 100 * float(np.mean(hits))
                same = [len(set(a) & set(b)) / len(a) for a, b in zip(whole[language], answers, strict=True)]
                row[language, 0] = 100 * float(np.mean(same))
            found[width, kind] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--dims", type=int, nargs="*", default=[32, 64, 128])
    arguments = parser.parse_args()
    results = []
    for name in arguments.models:
        model = load_encoder(resolve(name), "cpu")
        given = (from_photos if arguments.data.is_dir() else from_pairs)(arguments.data, model)
        results.append(measure(model, given, arguments.dims))
    print(f"{arguments.data.name}: {len(given.pixels)} images; mean of {len(results)} models")
    print("dims | type | bytes | R@1, 5, 10 en | R@1, 5, 10 zh | same first 10 en, zh")
    for width, kind in results[0]:
        mean = {key: np.mean([one[width, kind][key] for one in results]) for key in results[0][width, kind]}
        size = compressed(np.ones((1, width), np.float32), kind).nbytes
        recalls = (", ".join(f"{mean[language, rank]:.1f}" for rank in RANKS) for language in ("en", "zh"))
        print(f"{width} | {kind} | {size} | {' | '.join(recalls)} | {mean['en', 0]:.1f}, {mean['zh', 0]:.1f}")


if __name__ == "__main__":
    main()
