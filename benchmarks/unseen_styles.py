"""How well does a model tell the quick start's unseen classes apart, in every drawing style rather than in one?

    python benchmarks/unseen_styles.py EMOJI_DIR recipes/quickstart/teacher runs/quickstart/align/model

EMOJI_DIR is what `recipes/quickstart/build.py` reads. The 210 pictures of `unseen.parquet` are few: a seed moves their
top-1 by two points. The same classes drawn in all styles are 1,809 pictures that training never saw either. Printed per
model: top-1 in %, English / Chinese, of each style, of all pictures, and of the styles that training had none of. The
figures stand in docs/results.md.
"""

import argparse
import runpy
from pathlib import Path

import numpy as np
import torch

from dcclip_cli import load
from dcclip_cli.data.table import open_pairs
from dcclip_cli.model.preprocess import decode

QUICKSTART = Path(__file__).resolve().parents[1] / "recipes/quickstart"
LANGUAGES = ("en", "zh")


def drawings(emoji: Path) -> tuple[dict[str, list[str]], np.ndarray, np.ndarray, list[bytes]]:
    """Names per language, one a class; then the style, the class's number and the picture of every drawing."""
    build = runpy.run_path(str(QUICKSTART / "build.py"))
    unseen = open_pairs(QUICKSTART / "unseen.parquet")
    codes = {key.split("_")[1]: number for number, key in enumerate(unseen.keys())}
    names = {language: [own[0] for own in unseen.captions(language)] for language in LANGUAGES}
    found = [item for tar in sorted(emoji.glob("*.tar")) for item in build["read_style"](tar) if item.code in codes]
    styles = np.array([item.style for item in found])
    new = ~np.isin(styles, build["TRAINING_STYLES"])
    styles = np.where(new, styles, np.char.add(styles, "*"))  # a star: training had other classes of this style
    return names, styles, np.array([codes[item.code] for item in found]), [item.image for item in found]


def right(model_folder: str, names: dict[str, list[str]], classes: np.ndarray, pictures: list[bytes]) -> np.ndarray:
    """(2, N) bool: whether the model gives each picture its name, in each language."""
    model = load(model_folder)
    images = model.embed_images([decode(picture) for picture in pictures])
    answers = [(images @ model.embed_texts(own).T).argmax(axis=1) for own in names.values()]
    # Two classes of one name are one class.
    return np.stack(
        [np.array(own)[given] == np.array(own)[classes] for own, given in zip(names.values(), answers, strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("emoji", type=Path, help="folder of one tar per style")
    parser.add_argument("models", nargs="+", help="model directories")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, styles, classes, pictures = drawings(options.emoji)
    new = np.char.find(styles, "*") < 0
    parts = {style: styles == style for style in sorted(set(styles.tolist()))}
    parts |= {"new styles": new, "all": np.ones(len(styles), bool)}
    correct = {model: right(model, names, classes, pictures) for model in options.models}
    for number, model in enumerate(options.models, 1):
        print(f"{number}: {model}")
    print(f"{'style':<14}{'pictures':>9}" + "".join(f"{number:>14}" for number in range(1, len(correct) + 1)))
    for part, rows in parts.items():
        figures = ["{:.1f} / {:.1f}".format(*100 * own[:, rows].mean(axis=1)) for own in correct.values()]
        print(f"{part:<14}{rows.sum():>9}" + "".join(f"{text:>14}" for text in figures))


if __name__ == "__main__":
    main()
