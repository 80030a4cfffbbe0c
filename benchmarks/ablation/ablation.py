"""Ablation of the method's parts on the quick start's data, at equal steps.

    python benchmarks/ablation/ablation.py OUT [--seeds 0 1 2] [--steps 150] [--only NAME ...]

Every variant is benchmarks/train/small.yaml with two thirds of the steps in stage 1 and a third in stage 2, or all in
one of them. Runs lie in OUT/NAME-SEED; those that are finished are not run again, their teacher answers are shared.
Ends with a table (mean and standard deviation over the seeds, top-1 in %, English / Chinese) and OUT/ablation.svg.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

sys.path.append(str(Path(__file__).parent.parent / "train"))

from variants import SETS, Figures, Variant, figures_of, show

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


def draw(rows: dict[Variant, list[Figures]], file: Path) -> None:
    """A panel for each test set, a variant a line, a bar for each language with its spread over the seeds."""
    figure, panels = plt.subplots(1, len(SETS), figsize=(10, 0.42 * len(rows) + 1.3), sharey=True)
    for name, axes in zip(SETS, panels, strict=True):
        for place, (language, label) in enumerate((("en", "English"), ("zh", "Chinese"))):
            values = [[100 * one[f"{name} {language}"] for one in several] for several in rows.values()]
            axes.barh(
                [number + 0.4 * place for number in range(len(rows))],
                [statistics.mean(several) for several in values],
                xerr=[statistics.stdev(several) if len(several) > 1 else 0 for several in values],
                height=0.38,
                label=label,
            )
        axes.set_title(name)
        axes.set_xlabel("top-1, %")
    panels[0].set_yticks([number + 0.2 for number in range(len(rows))], [variant.name for variant in rows])
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower left")
    figure.tight_layout()
    figure.savefig(file)


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
    draw(rows, given.out / "ablation.svg")


if __name__ == "__main__":
    main()
