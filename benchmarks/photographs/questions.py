"""The paper's questions on photographs: contrast alone against two stages, at equal time.

    python benchmarks/photographs/hold_out.py CLASS_FOLDERS SPLIT
    python benchmarks/photographs/questions.py SPLIT OUT [--seconds 300] [--seeds 0 1 2] [--teachers starter aligned]
        [--set KEY=VALUE ...]

Captions are the names of the classes in both languages. The teacher is the starter, or the starter after `align` on
these captions. A run has `--seconds` for the teacher's answers and all steps, of which two thirds are stage 1's; steps
are counted by what some of each stage take on this machine, one thread each. `--set` sets keys of the stages for all
variants, such as a rate, and needs an OUT of its own. Runs are in OUT/TEACHER-VARIANT-SEED, and finished ones are not
run again. Ends with a table: top-1 and the mean over the classes in % on SPLIT/held, English / Chinese, mean and
standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

import dcclip_cli as dcclip
from dcclip_cli.api import open_run
from dcclip_cli.recipe.load import load
from dcclip_cli.run_dir import StageName

sys.path.append(str(Path(__file__).parent.parent / "train"))

from variants import ALONE, BATCH_SIZE, ROOT, Figures, Variant, row

RECIPE = Path(__file__).with_name("questions.yaml")
METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}
STARTER = ROOT / "recipes/starter/model"
MEASURED_STEPS = 12
TEACHER_IMAGES = 256
INHERITED = "student.image.inherit=teacher"
KEPT = "align.losses=[{kind: embedding, weight: 4}]"


VARIANTS = (
    Variant("contrast", "contrast alone, no teacher", ("align",), ALONE),
    Variant("contrast-inherited", "contrast alone, inherited image tower", ("align",), (*ALONE, INHERITED)),
    Variant(
        "maps",
        "feature maps and token features, then contrast: the paper",
        sets=("distill.losses=[{kind: feature_map}, {kind: token_features}]",),
    ),
    Variant("embeddings", "embeddings, then contrast"),
    Variant(
        "ours",
        "inherited image tower, embeddings and anchors, then contrast and embeddings",
        sets=(INHERITED, "distill.losses=[{kind: embedding}, {kind: anchors}]", KEPT),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teachers", nargs="+", choices=("starter", "aligned"), default=["starter", "aligned"])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in VARIANTS])
    given = parser.parse_args()
    pairs = collected(given.split / "train", given.out)
    for name in given.teachers:
        teacher = STARTER if name == "starter" else aligned_starter(pairs, given.out)
        own = measured(teacher, given.split / "held", given.out / f"eval-{name}")
        print(f"| {name} | the teacher itself | {cell([own])} |", flush=True)
        job = Job(name, teacher, pairs, seconds_per_image(teacher, given.split / "train"), tuple(given.sets))
        for variant in VARIANTS:
            if given.only and variant.name not in given.only:
                continue
            if name != given.teachers[0] and "distill" not in variant.stages and INHERITED not in variant.sets:
                continue  # without a teacher: the same runs
            found = [trained(given, variant, job, seed) for seed in given.seeds]
            print(f"| {name} | {variant.what} | {cell(found)} |", flush=True)


@dataclass(frozen=True)
class Job:
    """What the runs of one teacher share."""

    name: str
    teacher: Path
    pairs: Path
    teacher_image_s: float
    sets: tuple[str, ...]


def collected(folder: Path, out: Path) -> Path:
    """Pairs of the class folders with the names as captions."""
    source = {"kind": "class_folders", "path": str(folder.resolve())}
    return made(out, "pairs", {"collect": {"sources": [source], "duplicates": []}}, "collect")


def aligned_starter(pairs: Path, out: Path) -> Path:
    """The starter after `align` on the captions, with all of its image tower: some minutes."""
    align = {"start": str(STARTER), "steps": 120, "batch_size": 64, "warmup_steps": 20, "threads": 1}
    align |= {"optimizer": {"lr": 3e-4}, "augment": {"crop": 0.5, "flip": True}}
    return made(out, "aligned", {"data": {"train": str(pairs)}, "align": align}, "align") / "model"


def made(out: Path, name: str, recipe: dict[str, object], stage: StageName) -> Path:
    """The folder of a stage of a recipe, run if it has not been."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"format": 1, "name": name, **recipe}, allow_unicode=True), "utf-8")
    dcclip.run(str(file), out=out / name)
    return (out / name / stage).resolve()


def seconds_per_image(teacher: Path, folder: Path) -> float:
    """What the teacher takes for an image, with one thread."""
    files = sorted(folder.rglob("*.jpg"))[:TEACHER_IMAGES]
    model = dcclip.load(str(teacher), threads=1)
    begin = time.perf_counter()
    model.embed_images(files)
    return (time.perf_counter() - begin) / len(files)


def trained(given: argparse.Namespace, variant: Variant, job: Job, seed: int) -> Figures:
    """Figures of the run of one seed, trained if it has not been."""
    folder = given.out / f"{job.name}-{variant.name}-{seed}"
    file = folder / "figures.json"
    if not file.is_file():
        steps = steps_within(given, variant, job, folder)
        train(variant, job, seed, steps, folder)
        found = measured(folder / variant.stages[-1] / "model", given.split / "held", folder / "eval")
        file.write_text(json.dumps(found), "utf-8")
        print(f"{folder.name}: {cell([found])}, steps {steps}", flush=True)
    figures: Figures = json.loads(file.read_text("utf-8"))
    return figures


def steps_within(given: argparse.Namespace, variant: Variant, job: Job, folder: Path) -> dict[str, int]:
    """The steps of each stage that fit into the seconds of a run, after the teacher's answers."""
    trial = folder.with_name(f"{folder.name}-speed")
    train(variant, job, 0, dict.fromkeys(variant.stages, MEASURED_STEPS), trial, log_every_steps=2)
    left = given.seconds
    if "distill" in variant.stages:
        augmentations = load(RECIPE).recipe.distill.augmentations  # type: ignore[union-attr]
        left -= job.teacher_image_s * augmentations * sum(1 for _ in (given.split / "train").rglob("*.jpg"))
    assert left > 0, "the teacher alone takes longer: more --seconds"
    shares = {"distill": 2 / 3, "align": 1 / 3} if len(variant.stages) == 2 else {variant.stages[0]: 1.0}
    return {stage: int(share * left / step_s(trial / stage)) for stage, share in shares.items()}


def train(
    variant: Variant, job: Job, seed: int, steps: dict[str, int], folder: Path, log_every_steps: int = 10
) -> None:
    sets = [f"seed={seed}", f"teacher.model={job.teacher.resolve()}", f"data.train={job.pairs}"]
    sets += [*variant.sets, *job.sets]
    for stage, count in steps.items():
        sets += [f"{stage}.steps={count}", f"{stage}.log_every_steps={log_every_steps}"]
    run = open_run(load(RECIPE, sets), folder, "cpu")
    run.begin(*variant.stages)
    for stage in variant.stages:
        run.train(stage)


def step_s(stage: Path) -> float:
    """Seconds of a step, by the log without its first entries."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text("utf-8").splitlines()][2:]
    return statistics.median(BATCH_SIZE / line["images_per_second"] for line in lines)


def measured(model: Path, held: Path, out: Path) -> Figures:
    """Zero-shot accuracy in 0..1 by `METRIC LANGUAGE`, with the bare names."""
    results = dcclip.evaluate(model=str(model), datasets=[str(held)], templates="name", out=out)
    return {f"{name} {one.language}": one.metrics[key] for one in results for key, name in METRICS.items()}


def cell(found: list[Figures]) -> str:
    """English / Chinese for each metric: means, with the standard deviations of several."""
    return row(list(METRICS.values()), found)


if __name__ == "__main__":
    main()
