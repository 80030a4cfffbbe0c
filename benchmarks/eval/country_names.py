"""What 中国香港, 中国澳门 and 中国台湾 give against 香港, 澳门 and 台湾: measured on drawn flags.

    python benchmarks/eval/country_names.py flags EMOJI OUT STYLE...   # OUT/country211/test/HK/STYLE.webp
    python benchmarks/eval/country_names.py measure MODEL OUT

EMOJI has a tar for each style, of STYLE_CODEPOINTS.webp. `measure` prints top-1 over all flags with both namings, the
same for the classes concerned and China, and cosines of their texts. Flags are drawings: they show how close the texts
are to each other and to a picture, not what photographs of the places would give.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np

from dcclip_cli.data import prompts
from dcclip_cli.eval.dataset import Classes
from dcclip_cli.eval.datasets import open_dataset
from dcclip_cli.eval.embedding import Embedder, FeatureCache
from dcclip_cli.model.reference import resolve
from dcclip_cli.predict.encoder import load_encoder
from dcclip_cli.progress import Silent

_A = 0x1F1E6  # the flag of AB is the code points _A + 0, _A + 1


def flags(emoji: Path, out: Path, styles: list[str]) -> None:
    countries = set(prompts.read("country211").folders)
    for style in styles:
        with tarfile.open(emoji / f"{style}.tar") as archive:
            for member in archive:
                stem, _, suffix = member.name.rpartition(".")
                points = stem.rpartition("_")[2].split("-")
                if suffix != "webp" or len(points) != 2 or not all(len(point) == 5 for point in points):
                    continue
                letters = [int(point, 16) - _A for point in points]
                country = "".join(chr(65 + letter) for letter in letters if 0 <= letter < 26)
                content = archive.extractfile(member)
                if country in countries and content:
                    file = out / "country211/test" / country / f"{style}.webp"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content.read())


def measure(reference: str, root: Path) -> None:
    model = load_encoder(resolve(reference), "cpu", "fp32")
    embedder = Embedder(model, FeatureCache(None), Silent())
    dataset = open_dataset("country211-cn", data_root=root, partial="all")
    truth = dataset.truth["zh"]
    assert isinstance(truth, Classes)
    images = embedder.images(dataset.images, dataset.transform, dataset.name, None)
    labels, places = truth.labels[images.indices], prompts.read("country211").folders
    print(f"{reference}: {len(labels)} images of {len(set(labels.tolist()))} classes")
    print("| names | top-1, all | CN | HK | MO | TW | answered 中国 for HK, MO, TW | HK, TW: ahead of 中国 by |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for title, names in (
        ("as listed", truth.names),
        ("plain", tuple(truth.plain_names.get(name, name) for name in truth.names)),
    ):
        scores = images.vectors @ embedder.classes(names, truth.templates).T
        guesses, china = scores.argmax(1), places.index("CN")
        right = [guesses[labels == at] == at for at in map(places.index, ("CN", "HK", "MO", "TW"))]
        others = np.isin(labels, [places.index(one) for one in ("HK", "MO", "TW")])
        ahead = scores[others, labels[others]] - scores[others, china]
        answered, margins = int((guesses[others] == china).sum()), ", ".join(f"{one:.3f}" for one in ahead)
        cells = " | ".join(f"{int(one.sum())} of {len(one)}" for one in right)
        print(
            f"| {title} | {100 * (guesses == labels).mean():.2f} | {cells} | {answered} of {others.sum()} | {margins} |"
        )
    for listed, plain in truth.plain_names.items():
        one, other, whole = embedder.classes([listed, plain, "中国"], truth.templates)
        print(
            f"cosine to 中国: {listed} {one @ whole:.3f}, {plain} {other @ whole:.3f}; to each other {one @ other:.3f}"
        )


if __name__ == "__main__":
    if sys.argv[1] == "flags":
        flags(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    else:
        measure(sys.argv[2], Path(sys.argv[3]))
