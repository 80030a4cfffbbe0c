"""Zero-shot accuracy on the quick start's classes over all available emoji drawing styles.

    python benchmarks/more_styles.py EMOJI_DIR recipes/quickstart/teacher runs/quickstart/align/model

EMOJI_DIR is what `recipes/quickstart/build.py` reads. The test sets are small: on the 210 pictures of `unseen.parquet`
a seed moves top-1 by two points. The same classes in all styles are 1,809 pictures that training never saw either, and
the known classes in every style that training has none of are 4,103. Printed per model: top-1 in %, English / Chinese.
The numbers are in docs/results/emoji.md.
"""

import argparse
import runpy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dcclip_cli import load
from dcclip_cli.data.collator import first_captions
from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.data.pair import Language
from dcclip_cli.model.preprocess import decode
from dcclip_cli.predict.model import Model

QUICKSTART = Path(__file__).resolve().parents[1] / "recipes/quickstart"
BUILD = runpy.run_path(str(QUICKSTART / "build.py"))
LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True)
class Drawings:
    """The pictures of one style, and what each is called in both languages."""

    pictures: list[Image.Image]
    names: dict[Language, list[str]]

    def right(self, model: Model) -> np.ndarray:
        """(2, N) bool: whether the model gives each picture its name rather than another one of these."""
        images = model.embed_images(self.pictures)
        answers = []
        for own in self.names.values():
            classes = sorted(set(own))
            given = (images @ model.embed_texts(classes).T).argmax(axis=1)
            answers.append(np.array(classes)[given] == np.array(own))
        return np.stack(answers)


def drawings(test_set: str, styles: dict[str, list[Any]], wanted: Iterable[str]) -> dict[str, Drawings]:
    """The classes of a test set in each of the styles wanted."""
    test = open_pairs(QUICKSTART / f"{test_set}.parquet")
    rows = {key.split("_")[1]: row for row, key in enumerate(test.keys())}
    firsts = {language: first_captions(test, language) for language in LANGUAGES}
    found = {}
    for style in wanted:
        items = [item for item in styles[style] if item.code in rows]
        names = {language: [own[rows[item.code]] for item in items] for language, own in firsts.items()}
        found[style] = Drawings([decode(item.image) for item in items], names)
    return found


def show(title: str, styles: dict[str, Drawings], models: list[Model]) -> None:
    """A line per style, and one of all pictures."""
    right = {style: [one.right(model) for model in models] for style, one in styles.items()}
    right["all"] = [np.concatenate(own, axis=1) for own in zip(*right.values(), strict=True)]
    print(f"{title:<36}" + "".join(f"{number:>15}" for number in range(1, len(models) + 1)))
    for style, own in right.items():
        figures = ["{:.1f} / {:.1f}".format(*100 * one.mean(axis=1)) for one in own]
        print(f"  {style:<22}{own[0].shape[1]:>12,}" + "".join(f"{text:>15}" for text in figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("emoji", type=Path, help="folder of one tar per style")
    parser.add_argument("models", nargs="+", help="model directories")
    options = parser.parse_args()
    models = [load(model) for model in options.models]
    for number, model in enumerate(options.models, 1):
        print(f"{number}: {model}")
    styles = {tar.stem: BUILD["read_style"](tar) for tar in sorted(options.emoji.glob("*.tar"))}
    new = [style for style in styles if style not in BUILD["TRAINING_STYLES"]]
    show("known classes, styles new to training", drawings("twemoji", styles, new), models)
    show("unseen classes, all styles", drawings("unseen", styles, styles), models)


if __name__ == "__main__":
    main()
