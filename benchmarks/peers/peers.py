"""Our mix of losses compared with the peers': same student, initial weights, data, batches and
steps, one core.

    pip install 'open_clip_torch[training]'
    python benchmarks/peers/peers.py OUT [--seeds 0 1 2] [--steps 150] [--only NAME ...]

* `default`, ours: embedding + 0.5 interactive + 2 middle maps, then contrast with the first two
  beside it. `contrast`: contrast alone, in our loop.
* `clip-kd`: CLIP-KD's best mix with its weights: task 1, FD 2000, CRD 1, ICL 1. Its FD is a mean
  over B x D of both towers, so at width 256 ours, a mean of both, has 2000 x 2 x 2 / 256 = 31.25.
  Its 1 / tau is meant to begin at 1 / 0.07.
* `tinyclip`: TinyCLIP's affinity at 50, no other loss. (What it is known for, pruning, is not in
  this.)
* `open_clip`, `open_clip-distill`: open_clip's own trainer, contrast alone and with
  --distill-model, with its AdamW. It sees one caption a picture and step, Chinese or English by
  turns, drawn as ours are; and its teacher has to see the student's pictures, 64 px for 96. Runs
  lie in OUT/NAME-SEED, those of benchmarks/ablation may lie there too; what is finished is not run
  again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "train"))

import open_clip_trainer
from variants import (
    BATCH_SIZE,
    LANGUAGES,
    RECIPE,
    ROOT,
    Figures,
    Variant,
    figures_of,
    remembered,
    show,
)

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.recipe.load import load
from dcclip_cli.train.student import new_student
from dcclip_cli.train.teacher import widths

ICL_SCALE = 1 / 0.07
VARIANTS = (
    Variant("default", "ours, as in recipes/emoji.yaml"),
    Variant(
        "clip-kd",
        "CLIP-KD: task + 2000 FD + CRD + ICL",
        ("distill",),
        (
            "distill.losses=[{kind: task}, {kind: embedding, weight: 31.25}, {kind: similarity}, "
            f"{{kind: interactive, scale: {ICL_SCALE:.2f}}}]",
        ),
    ),
    Variant("tinyclip", "TinyCLIP: affinity", ("distill",), ("distill.losses=[{kind: affinity}]",)),
    Variant("contrast", "our loop, contrast alone", ("align",), ("align.losses=[]",)),
)
TRAINER = {
    Variant("open_clip", "open_clip's trainer, contrast alone"): (),
    Variant("open_clip-distill", "open_clip's trainer, --distill-model"): (
        "--distill-model",
        f"local-dir:{ROOT / 'recipes/quickstart/teacher'}",
        "--distill-pretrained",
        "the weights in the directory",  # has to be said, and is not looked at
    ),
}


def trained_by_open_clip(variant: Variant, seed: int, steps: int, out: Path) -> Figures:
    """The same student trained by open_clip's trainer on the same pictures and captions."""

    def train(folder: Path) -> tuple[Path, float]:
        recipe = load(RECIPE, [f"seed={seed}"]).recipe
        assert recipe.student is not None and recipe.teacher is not None and recipe.data is not None
        table, teacher = open_pairs(str(recipe.data.train)), recipe.teacher.load("cpu")
        student = new_student(
            recipe.student,
            widths(teacher, ()).embedding,
            table,
            folder.name,
            seed,
            recipe.teacher.source,
            teacher,
        )
        student.save(folder / "start", {})
        rows = open_clip_trainer.write_rows(
            folder, out / "pictures", table, steps, BATCH_SIZE, seed, LANGUAGES
        )
        weights = open_clip_trainer.train(
            folder / "start", rows, folder, BATCH_SIZE, "amp_bf16", seed, *TRAINER[variant]
        )
        student.towers.model.load_state_dict(weights)
        student.save(folder / "model", {})
        return folder / "model", steps * open_clip_trainer.seconds_of_a_step(folder)

    return remembered(out / f"{variant.name}-{seed}", steps, train)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    variants = (*VARIANTS, *TRAINER)
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in variants])
    parsed = parser.parse_args()
    rows: dict[Variant, list[Figures]] = {
        item: [] for item in variants if not parsed.only or item.name in parsed.only
    }
    for seed in parsed.seeds:
        for variant, figures in rows.items():
            train = trained_by_open_clip if variant in TRAINER else figures_of
            figures.append(train(variant, seed, parsed.steps, parsed.out))
    show(rows)


if __name__ == "__main__":
    main()
