"""Duration of an epoch of the quick start's stage 1 with a warm teacher cache and without a cache.

    python benchmarks/train/cached_epoch.py WORK [--rounds 3] [--threads 2]

The recipe as it is but for the threads, one epoch; with and without by turns. Seconds of the training loop: starting up
is in neither.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from dcclip_cli.recipe.load import load
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.distill import distill
from dcclip_cli.train.options import StageContext

RECIPE = Path(__file__).resolve().parents[2] / "recipes/emoji.yaml"


def epoch(folder: Path, threads: int, cache: bool) -> float:
    """Seconds that one epoch takes."""
    sets = ["distill.steps=null", "distill.epochs=1", f"distill.teacher_cache={cache}", f"distill.threads={threads}"]
    asked = load(RECIPE, sets).recipe
    assert asked.distill and asked.teacher and asked.student and asked.data
    context = StageContext(RunDir(folder), asked.data, asked.teacher, asked.student, asked.seed, fresh=True)
    return distill(asked.distill, context).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    folder = given.work / "cached-epoch/run"
    epoch(folder, given.threads, cache=True)  # fills it
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(given.rounds):
        for cache, several in seconds.items():
            several.append(epoch(folder, given.threads, cache))
        print(f"round {number + 1}: {seconds[True][-1]:.1f} s warm, {seconds[False][-1]:.1f} s without", flush=True)
    warm, without = (statistics.median(several) for several in seconds.values())
    print(f"an epoch: {warm:.1f} s with a warm cache, {without:.1f} s without: {without / warm:.2f} x")


if __name__ == "__main__":
    main()
