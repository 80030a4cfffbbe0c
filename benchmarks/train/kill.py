"""Weights of training that is killed at random moments and resumed, compared with those of an unbroken run.

    python benchmarks/train/kill.py WORK [--kills 20] [--first-seed 0]

Each time `dcclip run` starts anew, is killed with signal 9 at a random moment between the start of its first stage and
its end, and is started again: filling the teacher cache, both stages, saving. A checkpoint is saved every four steps.
The sha256 of both stages' weights must be that of the unbroken run.
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

from few import arguments, dcclip, few_pairs, sha256

sys.path.append(str(Path(__file__).parent.parent))

from killing import killed

SETS = (
    "distill.steps=24",
    "align.steps=20",
    "batch_size=32",
    "texts_per_step=16",
    "checkpoint_every_steps=4",
    "warmup_steps=4",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0, help="of the random moments; each kill takes the next")
    given = parser.parse_args()
    root = given.work.resolve() / "kill"
    shutil.rmtree(root, ignore_errors=True)
    whole, broken, cache = root / "whole", root / "broken", root / "cache"
    os.environ["DCCLIP_CACHE"] = str(cache)
    pairs = few_pairs(root)
    sets = (f"data.texts={pairs}", *SETS)
    begin, wall = time.monotonic(), time.time()
    subprocess.run(dcclip(*arguments("run", pairs, whole, *sets)), check=True, stdout=subprocess.DEVNULL)
    whole_s, begins_s = time.monotonic() - begin, (whole / "resolved.yaml").stat().st_mtime - wall
    expected = sha256(whole)
    print(f"unbroken: {whole_s:.1f} s; {', '.join(f'{stage} {sha[:12]}' for stage, sha in expected.items())}")

    kills, seed, different = 0, given.first_seed, 0
    while kills < given.kills:
        after_s = Random(seed).uniform(begins_s, whole_s)
        seed += 1
        command = dcclip(*arguments("run", pairs, broken, *sets))
        for folder in (broken, cache / "teacher-cache"):
            shutil.rmtree(folder, ignore_errors=True)
        if not killed(command, after_s):
            continue
        kills += 1
        left = ", ".join(where(broken, cache)) or "nothing"
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        same = sha256(broken) == expected
        different += not same
        print(f"kill {kills:>2} after {after_s:4.1f} s, left {left}: {'same' if same else 'OTHER WEIGHTS'}", flush=True)
    print(f"{kills} kills over both stages, {different} with other weights than the unbroken run")
    sys.exit(bool(different))


def where(run: Path, cache: Path) -> list[str]:
    """How far a killed run got: finished stages, saved states, blocks of the teacher cache."""
    found = []
    for stage in ("distill", "align"):
        if (run / stage / "model").is_dir():
            found.append(f"{stage} finished")
        else:
            found += [f"{stage} at {path.name}" for path in sorted((run / stage / "state").glob("step-*"))]
    blocks = len(list(cache.glob("teacher-cache/*/*/*.block")))
    return found or [f"{blocks} blocks of the teacher cache"][: bool(blocks)]


if __name__ == "__main__":
    main()
