"""Ablation of the method's parts on the quick start's data, at equal steps.

    python benchmarks/ablation/ablation.py OUT [--seeds 0 1 2] [--steps 150] [--only NAME ...]

Every variant is benchmarks/train/small.yaml with two thirds of the steps in stage 1 and a third in stage 2, or all in
one of them. Runs lie in OUT/NAME-SEED; those that are finished are not run again, their teacher answers are shared.
Ends with a table (mean and standard deviation over the seeds, top-1 in %, English / Chinese). docs/results
has one as ablation.csv, and draws it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "train"))

from variants import Figures, Variant, figures_of, show

PLAIN = "align.losses=[]"
MAPS = "distill.losses=[{kind: feature_map}, {kind: token_features}]"

DEFAULT = Variant("default", "embedding + 0.5 interactive + 2 middle maps, then contrast with the first two")
VARIANTS = (
    DEFAULT,
    Variant(
        "contrast-only",
        "no teacher at all: vocabulary from the captions, random weights",
        ("align",),
        (PLAIN, "student.text.inherit=nothing", "student.text.vocabulary.from=data"),
    ),
    Variant("distill-only", "the default's stage 1, no stage 2", ("distill",)),
    Variant("plain-stage-2", "the default's stage 1, then contrast alone", sets=(PLAIN,)),
    Variant(
        "no-middle-maps",
        "embedding + 0.5 interactive, then contrast alone",
        sets=(PLAIN, "distill.losses=[{kind: embedding}, {kind: interactive, weight: 0.5}]"),
    ),
    Variant(
        "keywords", "names and keywords alternately", sets=("distill.captions.first=0.5", "align.captions.first=0.5")
    ),
    Variant("maps-only", "feature maps and token features, no stage 2", ("distill",), (MAPS,)),
    Variant("maps", "feature maps and token features, then contrast alone: the paper", sets=(PLAIN, MAPS)),
    Variant(
        "embeddings",
        "embeddings, then contrast alone",
        sets=(PLAIN, "distill.losses=[{kind: embedding}]"),
    ),
    Variant(
        "logits",
        "similarities, then contrast alone",
        sets=(PLAIN, "distill.losses=[{kind: similarity}]"),
    ),
    Variant(
        "chinese", "Chinese captions alone", sets=("distill.captions.languages=[zh]", "align.captions.languages=[zh]")
    ),
    Variant(
        "english", "English captions alone", sets=("distill.captions.languages=[en]", "align.captions.languages=[en]")
    ),
    Variant(
        "no-cache",
        "the teacher queried at every step, augmentations never repeat",
        sets=("distill.teacher_cache=false",),
    ),
    Variant(
        "same-width", "only the embedding rows of the teacher's text tower", sets=("student.text.inherit=embeddings",)
    ),
    Variant(
        "half-width",
        "these rows by PCA, a text tower half as wide",
        sets=("student.text.width=96", "student.text.inherit=embeddings"),
    ),
    Variant("two-layers", "both text layers of the teacher", sets=("student.text.layers=2",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS])
    given = parser.parse_args()
    rows: dict[Variant, list[Figures]] = {one: [] for one in VARIANTS if not given.only or one.name in given.only}
    for seed in given.seeds:
        for variant, several in rows.items():
            several.append(figures_of(variant, seed, given.steps, given.out))
    show(rows)


if __name__ == "__main__":
    main()
