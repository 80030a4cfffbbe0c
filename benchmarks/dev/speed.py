"""Speed of a working tree next to another's, by turns, so that other work on the machine meets
both alike.

    git worktree add ../before 03a28b2
    python benchmarks/dev/speed.py ../before WORK [--rounds 5] [--only collect predict ...]

Both run with this Python, on the quick start's pairs. Printed are medians, and the median and
range of the rounds' ratios: over 1 the tree of this script is faster. `help`, `predict`, `eval`
and `collect` are whole commands; `distill` is by the log of stage 1 with all answers of the
teacher there, and `teacher` what an epoch takes longer without them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAIRS, BATCH_SIZE, AUGMENTATIONS = 3686, 64, 2


class Tree:
    """Commands of a working tree, in a folder of its own; `pairs` is the file of the quick
    start's.
    """

    def __init__(self, root: Path, work: Path, threads: int) -> None:
        self._root, self._work, self._threads = root, work, threads
        self._pairs = str(root / "recipes/quickstart/train.parquet")

    def seconds(self, *arguments: object) -> float:
        """What a command takes; its run folder and the cache are left in the folder."""
        settings = {
            "PYTHONPATH": str(self._root),
            "DCCLIP_CACHE": str(self._work / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "dcclip_cli", *map(str, arguments)]
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=self._work, env=os.environ | settings, capture_output=True, text=True
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(
                f"{command} in {self._root} ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )
        return seconds

    def clear(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)

    def help(self) -> dict[str, float]:
        return {"help, 1/s": 1 / self.seconds("--help")}

    def predict(self) -> dict[str, float]:
        picture = self._root / "docs/images/cat.png"
        return {
            "predict, 1/s": 1
            / self.seconds("predict", picture, "--labels", "猫,dog", "--model", "starter")
        }

    def eval(self) -> dict[str, float]:
        seconds = self.seconds(
            "eval", "--model", "starter", "--dataset", self._pairs, "--device", "cpu", "-q"
        )
        return {"eval, images/s": PAIRS / seconds}

    def collect(self) -> dict[str, float]:
        recipe = {"name": "speed", "collect": {"sources": [{"kind": "table", "path": self._pairs}]}}
        (self._work / "speed.yaml").write_text(json.dumps(recipe))  # which is YAML
        return {
            "collect, pairs/s": PAIRS / self.seconds("collect", "speed.yaml", "--workers", 2, "-q")
        }

    def train(self) -> dict[str, float]:
        steps = PAIRS // BATCH_SIZE
        sets = {
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "augmentations": AUGMENTATIONS,
            "threads": self._threads,
        }
        flags = [
            part for key, value in sets.items() for part in ("--set", f"distill.{key}={value}")
        ]
        command = (
            "distill",
            self._root / "benchmarks/train/small.yaml",
            "--out",
            "run",
            "--fresh",
            "-q",
            *flags,
        )
        empty, full = self.seconds(*command), self.seconds(*command)
        lines = [
            json.loads(line)
            for line in (self._work / "run/distill/metrics.jsonl").read_text().splitlines()
        ][1:]
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        return {
            "teacher, images/s": steps * BATCH_SIZE / max(empty - full, 1e-9),
            "distill, images/s": statistics.median(rates),
        }


MEASURES: dict[str, Callable[[Tree], dict[str, float]]] = {
    "help": Tree.help,
    "predict": Tree.predict,
    "eval": Tree.eval,
    "collect": Tree.collect,
    "train": Tree.train,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the working tree to compare with")
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parsed = parser.parse_args()
    roots = {"other": parsed.other.resolve(), "this": ROOT}
    trees = {
        name: Tree(root, parsed.work.resolve() / name, parsed.threads)
        for name, root in roots.items()
    }
    print("| | other | this | this / other |\n|---|--:|--:|--:|")
    for measure in parsed.only:
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for number in range(parsed.rounds + 1):
            for name, tree in trees.items():
                tree.clear()
                rates = MEASURES[measure](tree)
                if number:  # the first round reads files into memory
                    measured[name].append(rates)
        for name_of_rate in measured["this"][0]:
            this, theirs = (
                [rates[name_of_rate] for rates in measured[name]] for name in ("this", "other")
            )
            ratios = sorted(rate / two for rate, two in zip(this, theirs, strict=True))
            medians = [f"{statistics.median(rates):.2f}" for rates in (theirs, this)]
            spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
            print(f"| {name_of_rate} | {medians[0]} | {medians[1]} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
