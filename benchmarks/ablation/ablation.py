"""What does each part of the method bring? Reruns the paper's questions on the quick start's data, at equal steps.

    python benchmarks/ablation/ablation.py OUT [--seeds 0 1 2] [--steps 1500] [--only NAME ...]

Every variant is the quick start's student and data with two thirds of STEPS in stage 1 and a third in stage 2, or all
in one of them. Runs lie in OUT/NAME-SEED; those that are finished are not run again, their teacher answers are shared.
Ends with a table (mean and standard deviation over the seeds, top-1 in %, English / Chinese) and OUT/ablation.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
SETS = ("twemoji", "emojione2", "unseen")
MAPS = "[{kind: feature_map}, {kind: token_features}]"
EMBEDDINGS = "[{kind: embedding}]"
LOGITS = "[{kind: similarity}]"


@dataclass(frozen=True)
class Variant:
    """One question's answer: which stages share the steps, and what else is set."""

    name: str
    asks: str
    stages: tuple[str, ...] = ("distill", "align")
    sets: tuple[str, ...] = ()


VARIANTS = (
    Variant("default", "the quick start's own losses, both stages"),
    Variant("contrast-only", "no teacher", ("align",)),
    Variant("maps-only", "feature maps, no stage 2", ("distill",), (f"distill.losses={MAPS}",)),
    Variant("maps", "feature maps, then contrast: the paper", sets=(f"distill.losses={MAPS}",)),
    Variant("embeddings", "embeddings, then contrast", sets=(f"distill.losses={EMBEDDINGS}",)),
    Variant("logits", "similarities, then contrast", sets=(f"distill.losses={LOGITS}",)),
    Variant(
        "chinese", "Chinese captions alone", sets=("distill.captions.languages=[zh]", "align.captions.languages=[zh]")
    ),
    Variant(
        "english", "English captions alone", sets=("distill.captions.languages=[en]", "align.captions.languages=[en]")
    ),
    Variant(
        "no-cache", "the teacher asked at every step, augmentations never repeat", sets=("distill.teacher_cache=false",)
    ),
    Variant("half-width", "a text tower half as wide", sets=("student.text.width=64",)),
    Variant("double-width", "a text tower twice as wide", sets=("student.text.width=256",)),
)


def run(variant: Variant, seed: int, steps: int, out: Path) -> dict[str, float]:
    """Train one variant and return its top-1 by set and language, with its seconds and parameters."""
    folder = out / f"{variant.name}-{seed}"
    stages = variant.stages
    share = {"distill": steps * 2 // 3, "align": steps // 3} if len(stages) == 2 else {stages[0]: steps}
    sets = [f"seed={seed}", *variant.sets]
    for stage, own in share.items():
        sets += [f"{stage}.steps={own}", f"{stage}.warmup_steps={min(100, own // 4)}"]
    if stages == ("align",):
        sets += ["align.start=scratch", "student.text.vocabulary.from=data"]
    for stage in stages:
        dcclip(stage, RECIPE, "--out", folder, *flags(sets))
    model = folder / stages[-1] / "model"
    results = folder / "eval"
    if not results.is_dir():
        data = [part for name in SETS for part in ("--dataset", ROOT / "recipes" / "quickstart" / f"{name}.parquet")]
        dcclip("eval", "--model", model, *data, "--languages", "en,zh", "--out", results)
    measured = [one for name in SETS for one in json.loads((results / f"{name}.json").read_text("utf-8"))]
    figures = {f"{one['dataset']} {one['language']}": one["value"] for one in measured}
    return figures | {"parameters": json.loads((model / "dcclip.json").read_text("utf-8"))["parameters"]}


def flags(sets: list[str]) -> list[str]:
    return [part for one in sets for part in ("--set", one)]


def dcclip(*arguments: object) -> None:
    """Run a command of dcclip; what it says goes to stderr."""
    command = [sys.executable, "-m", "dcclip_cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def say(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * spread:.1f}"


def draw(rows: dict[str, list[dict[str, float]]], file: Path) -> None:
    """Bars of unseen classes, both languages, a variant a line."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.5))
    for place, (language, label) in enumerate((("en", "English"), ("zh", "Chinese"))):
        means = [100 * statistics.mean(one[f"unseen {language}"] for one in several) for several in rows.values()]
        axes.barh([number + 0.4 * place for number in range(len(rows))], means, height=0.38, label=label)
    axes.set_yticks([number + 0.2 for number in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("top-1 on unseen classes, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS])
    given = parser.parse_args()
    chosen = [variant for variant in VARIANTS if not given.only or variant.name in given.only]
    rows = {one.name: [run(one, seed, given.steps, given.out) for seed in given.seeds] for one in chosen}
    print(f"| variant | what | parameters | {' | '.join(SETS)} |")
    print("|---|---|---|" + "---|" * len(SETS))
    for variant in chosen:
        several = rows[variant.name]
        cells = [
            " / ".join(say([one[f"{name} {language}"] for one in several]) for language in ("en", "zh"))
            for name in SETS
        ]
        print(f"| {variant.name} | {variant.asks} | {several[0]['parameters'] / 1e6:.2f} M | {' | '.join(cells)} |")
    draw(rows, given.out / "ablation.svg")


if __name__ == "__main__":
    main()
