"""Raw-pixel baseline: nearest neighbours among the quick start's training images.

    python benchmarks/pixel_baseline.py

Every test picture takes the name of the training picture whose 16 x 16 pixels, on white, differ least from its own
(squared difference). Nothing is learnt, so a model has to beat these figures before they mean anything. Unseen classes
have no training picture and get 0 by construction. The numbers are in docs/results/emoji.md.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from dcclip_cli.data.collator import first_captions
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Language, PairDataset
from dcclip_cli.model.preprocess import decode, flatten

DATA = Path(__file__).resolve().parents[1] / "recipes/quickstart"
TEST_SETS = ("twemoji", "emojione2", "unseen")
LANGUAGES: tuple[Language, ...] = ("en", "zh")
SIDE = 16


def pixels(table: PairDataset) -> np.ndarray:
    """(N, SIDE * SIDE * 3) float32 in 0..1: every picture on white, averaged down."""
    small = (flatten(decode(pair.image)).resize((SIDE, SIDE), Image.Resampling.BOX) for pair in table)
    return np.stack([np.asarray(image, np.float32).reshape(-1) / 255 for image in small])


def nearest(queries: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) the index of the row of `known` that is nearest to each query; of equally near rows the first."""
    return ((known**2).sum(axis=1) - 2 * queries @ known.T).argmin(axis=1)  # |query|^2 is the same for all


def main() -> None:
    train = open_pairs(DATA / "train.parquet")
    known = pixels(train)
    print(f"{len(train):,} training pictures, {SIDE} x {SIDE} pixels, top-1 in %")
    print(f"{'data set':<12}{'pictures':>9}" + "".join(f"{language:>7}" for language in LANGUAGES))
    for name in TEST_SETS:
        test = open_pairs(DATA / f"{name}.parquet")
        found = nearest(pixels(test), known)
        line = f"{name:<12}{len(test):>9}"
        for language in LANGUAGES:
            names = first_captions(train, language)
            right = [names[i] == own for i, own in zip(found, first_captions(test, language), strict=True)]
            line += f"{100 * np.mean(right):>7.1f}"
        print(line)


if __name__ == "__main__":
    main()
