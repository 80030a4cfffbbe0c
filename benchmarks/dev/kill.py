"""Weights of training on two processes that is killed at random moments and resumed, compared with
an unbroken run's.

    python benchmarks/dev/kill.py WORK [--times 20] [--first-seed 0]

Each time both stages start anew, all their processes are killed with signal 9 at a random moment
between the start of the first and the end of the second, and are started again: loading, filling
the teacher cache, steps, validation, saving. A checkpoint is saved every four steps. The sha256 of
both stages' weights must be that of the unbroken run. In every other run, stage 1 freezes batch
norms and stage 2 the image tower. The stages run under torchrun.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import psutil
from few import STAGES, arguments, few_pairs, sha256

SETS = (
    *(
        "distill.steps=24",
        "align.steps=20",
        "batch_size=32",
        "texts_per_step=16",
        "warmup_steps=4",
        "workers=2",
    ),
    *("log_every_steps=1", "validate_every_steps=6", "keep=best", "checkpoint_every_steps=4"),
)
FROZEN = ("distill.freeze_batch_norms=true", "align.lock=image", "align.ema=0.9", "keep=last")
TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "--redirects",
    "3",
    "--log-dir",
)


def run(
    pairs: Path, out: Path, cache: Path, sets: tuple[str, ...], after_s: float | None = None
) -> bool:
    """Train both stages into a folder; False if they were killed after so many seconds."""
    until = None if after_s is None else time.monotonic() + after_s
    log = cache.with_name("log")
    for stage in STAGES:
        shutil.rmtree(log, ignore_errors=True)
        train = arguments(stage, pairs, out, f"data.texts={pairs}", *sets)
        command = [sys.executable, *TORCHRUN, str(log), "-m", "dcclip_cli", *train]
        process = subprocess.Popen(
            command, process_group=0, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(None if until is None else max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            for program in started(cache):
                program.kill()
            process.wait()
            return False
        if code:
            stderr = "\n".join(
                file.read_text("utf-8", "replace") for file in log.rglob("[0-9]/stderr.log")
            )
            raise SystemExit(f"{command} ended with {code}:\n{stderr}")
    return True


def started(cache: Path) -> list[psutil.Process]:
    """All processes with this cache, whatever group they are in: torchrun, trainers, loader
    workers.
    """
    problems = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DCCLIP_CACHE") == str(cache) and process.pid != os.getpid():
                problems.append(process)
        except psutil.Error:  # of another user, or ended
            continue
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="of the random moments; each one takes the next"
    )
    options = parser.parse_args()
    root = options.work.resolve() / "kill"
    shutil.rmtree(root, ignore_errors=True)
    uninterrupted, broken, cache = root / "whole", root / "broken", root / "cache"
    os.environ |= {"DCCLIP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    pairs, expected = few_pairs(root), {}
    for sets in (SETS, (*SETS, *FROZEN)):
        shutil.rmtree(uninterrupted, ignore_errors=True)
        begin, wall = time.monotonic(), time.time()
        run(pairs, uninterrupted, cache, sets)
        whole_s, begins_s = (
            time.monotonic() - begin,
            (uninterrupted / "resolved.yaml").stat().st_mtime - wall,
        )
        expected[sets] = sha256(uninterrupted)
        digests = ", ".join(f"{stage} {digest[:12]}" for stage, digest in expected[sets].items())
        print(f"unbroken: {whole_s:.1f} s; {digests}", flush=True)
    kills, seed, wrong = 0, options.first_seed, 0
    while kills < options.times:
        sets, after_s = list(expected)[kills % 2], Random(seed).uniform(begins_s, whole_s)
        seed += 1
        for folder in (broken, cache / "teacher-cache"):
            shutil.rmtree(folder, ignore_errors=True)
        if run(pairs, broken, cache, sets, after_s):
            continue
        kills += 1
        remaining = sum(
            path.is_file()
            for folder in (broken, cache / "teacher-cache")
            for path in folder.rglob("*")
        )
        run(pairs, broken, cache, sets)
        same = sha256(broken) == expected[sets]
        wrong += not same
        print(
            f"{kills:>2} after {after_s:.1f} s, {remaining} files: "
            f"{'same' if same else 'OTHER WEIGHTS'}",
            flush=True,
        )
    print(f"{kills} kills over both stages, {wrong} with other weights")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
