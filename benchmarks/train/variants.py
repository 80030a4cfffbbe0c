"""Variants of the small recipe, each trained once per seed and evaluated on the three test sets."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcclip_cli.api import open_run
from dcclip_cli.core.run_dir import StageName
from dcclip_cli.eval.evaluate import EvalOptions, evaluate, open_datasets
from dcclip_cli.model.reference import resolve
from dcclip_cli.recipe.load import load

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("small.yaml")
SETS = ("twemoji", "emojione2", "unseen")
LANGUAGES = ("en", "zh")
BATCH_SIZE = 64
# The only stage of a run learns at the rates of a first one.
ALONE = ("align.start=scratch", "align.optimizer.lr=2e-2", "align.optimizer.other_lr=2e-3")
Figures = dict[str, float]


@dataclass(frozen=True)
class Variant:
    """One way to train: which stages share the steps, and what is set on top of the recipe."""

    name: str
    what: str
    stages: tuple[StageName, ...] = ("distill", "align")
    sets: tuple[str, ...] = ()


def figures_of(variant: Variant, seed: int, steps: int, out: Path) -> Figures:
    """Train in OUT/NAME-SEED, two thirds of the steps in stage 1 if there are two, and measure;
    once, then remembered.

    Top-1 in 0..1 by `SET LANGUAGE`, `parameters`, and `images_per_second` of the steps, teacher's
    cache apart.
    """

    def train(folder: Path) -> tuple[Path, float]:
        share = {"distill": steps * 2 // 3, "align": steps - steps * 2 // 3}
        if len(variant.stages) == 1:
            share = {variant.stages[0]: steps}
        sets = [f"seed={seed}", *(ALONE if variant.stages == ("align",) else ()), *variant.sets]
        loaded = load(
            RECIPE, [*sets, *(f"{stage}.steps={steps}" for stage, steps in share.items())]
        )
        job = open_run(loaded, folder, "cpu")
        job.begin(*variant.stages)
        for stage in variant.stages:
            job.train(stage)
        seconds = sum(
            seconds_of(folder / stage / "metrics.jsonl", steps) for stage, steps in share.items()
        )
        return folder / variant.stages[-1] / "model", seconds

    return remembered(out / f"{variant.name}-{seed}", steps, train)


def remembered(folder: Path, steps: int, train: Callable[[Path], tuple[Path, float]]) -> Figures:
    """The figures in `folder`, or those of the model that `train` leaves there in the seconds that
    it returns.
    """
    file = folder / "figures.json"
    if file.is_file():
        stored: Figures = json.loads(file.read_text("utf-8"))
        assert stored["steps"] == steps, (
            f"{folder} has {stored['steps']:.0f} steps; name another folder for {steps}"
        )
        return stored
    begin = time.monotonic()
    model, seconds = train(folder)
    figures = {**top_1(model), "images_per_second": steps * BATCH_SIZE / seconds, "steps": steps}
    figures["parameters"] = json.loads((model / "dcclip.json").read_text("utf-8"))["parameters"]
    file.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(
        f"{folder.name}: {row(list(SETS), [figures])} ({time.monotonic() - begin:.0f} s)",
        flush=True,
    )
    return figures


def seconds_of(metrics: Path, steps: int) -> float:
    """What so many steps take, going by the log without its first entry, in which everything was
    still cold.
    """
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()][1:]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return steps * BATCH_SIZE / statistics.harmonic_mean(rates)


def top_1(model: Path) -> Figures:
    """Zero-shot top-1 of a model directory, in 0..1, by `SET LANGUAGE`."""
    files = tuple(str(ROOT / "recipes/quickstart" / f"{name}.parquet") for name in SETS)
    options = EvalOptions(datasets=files, languages=LANGUAGES, workers=1)
    results = evaluate([resolve(str(model))], open_datasets(options), options, device="cpu")
    return {f"{result.dataset} {result.language}": result.value for result in results}


def row(sets: Sequence[str], several: Sequence[Figures]) -> str:
    """Cells of a table: mean and standard deviation over the seeds in %, English / Chinese."""
    return " | ".join(
        " / ".join(say([seed[f"{name} {language}"] for seed in several]) for language in LANGUAGES)
        for name in sets
    )


def say(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def show(rows: dict[Variant, list[Figures]]) -> None:
    """Print the variants as a table in Markdown."""
    print(f"| variant | what | parameters | images/s | {' | '.join(SETS)} |")
    print("|---|---|---|---|" + "---|" * len(SETS))
    for variant, seeds in rows.items():
        speed = statistics.mean(seed["images_per_second"] for seed in seeds)
        size = seeds[0]["parameters"] / 1e6
        print(
            f"| {variant.name} | {variant.what} | {size:.2f} M | {speed:.0f} | {row(SETS, seeds)} |"
        )
