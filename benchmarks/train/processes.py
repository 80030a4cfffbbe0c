"""Weights of training on two processes (gloo) compared with one on the same batches, and whether all runs exit.

    python benchmarks/train/processes.py WORK [--runs 20] [--stages distill align]

20 SGD steps, batch norms frozen, fp32, as `dcclip STAGE RECIPE --processes 2`; every second run is started by torchrun,
whose weights must be the same bits. A run that does not exit within TIMEOUT_S counts as hanging (pytorch issue 56297).
At ten times this rate the two end 1.4e-3 apart: from random weights with frozen batch norms a step of that size is
chaotic, and differences in the last bit grow.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from few import STAGES, WEIGHTS, arguments, dcclip, few_pairs
from safetensors.torch import load_file

TIMEOUT_S = 180
BOUND = 1e-5
SETS = (
    "steps=20",
    "batch_size=32",
    "warmup_steps=5",
    "precision=fp32",
    "freeze_batch_norms=true",
    "optimizer={kind: sgd, lr: 0.002, momentum: 0.9}",
    "clip_norm=null",
    "align.start=scratch",
    "align.cross_lingual=0.5",
    "teacher.precision=fp32",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    given = parser.parse_args()
    root = given.work.resolve() / "processes"
    shutil.rmtree(root, ignore_errors=True)
    pairs = few_pairs(root)
    wrong = 0
    for stage in given.stages:
        one, two = root / "one/run", root / "two/run"
        first = root / f"first-{stage}/run"
        for folder, sets in ((one, SETS), (first, (*SETS, f"{stage}.steps=1", f"{stage}.warmup_steps=0"))):
            subprocess.run(dcclip(*arguments(stage, pairs, folder, *sets)), check=True, stdout=subprocess.DEVNULL)
        moved = difference(one / stage / WEIGHTS, first / stage / WEIGHTS)
        print(f"{stage}: weights move by up to {moved:.1e} after the first step")
        digests = set[str]()
        for number in range(1, given.runs + 1):
            shutil.rmtree(two.parent, ignore_errors=True)
            begin = time.monotonic()
            ended = on_two_processes(arguments(stage, pairs, two, *SETS), torchrun=number % 2 == 0)
            seconds = time.monotonic() - begin
            furthest = difference(one / stage / WEIGHTS, two / stage / WEIGHTS) if ended else float("inf")
            digests.add(hashlib.sha256((two / stage / WEIGHTS).read_bytes()).hexdigest() if ended else "none")
            wrong += furthest > BOUND or len(digests) > 1
            by = "torchrun" if number % 2 == 0 else "--processes"
            print(
                f"{stage} {number:>2} {by:<11}: {seconds:.1f} s, largest difference of a weight {furthest:.1e}, "
                f"sha256 {sorted(digests)[0][:12]}{' AND OTHERS' if len(digests) > 1 else ''}",
                flush=True,
            )
    stages = " and ".join(given.stages)
    print(f"{given.runs} runs of {stages} in a row, {wrong} that hung, or differ by over {BOUND:g} or in bits")
    sys.exit(bool(wrong))


def on_two_processes(given: list[str], torchrun: bool) -> bool:
    """Whether two processes ran a command of dcclip to its end by themselves. An error in them ends this script."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if torchrun else []
    process = subprocess.Popen(
        [sys.executable, *launch, "-m", "dcclip_cli", *given, *([] if torchrun else ["--processes", "2"])],
        process_group=0,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        if code := process.wait(TIMEOUT_S):
            raise SystemExit(f"two processes ended with {code}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference between two files of weights of the same names."""
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


if __name__ == "__main__":
    main()
