"""Weights of training on two processes (gloo) compared with one on the same batches, and whether
all runs exit.

    python benchmarks/dev/processes.py WORK [--runs 20] [--stages distill align]

20 SGD steps, batch norms frozen, as `dcclip STAGE RECIPE --processes 2`; every second run is
started by torchrun, whose weights must be the same bits. A run that does not exit within TIMEOUT_S
counts as hanging (pytorch issue 56297).

Two processes and one sum in another order. In fp32 that alone makes 1e-7 to 1e-3 of the weights
after 20 steps, by the machine's kernels: as soon as one activation comes to the other side of a
ReLU's kink, gradients differ by a thousandth. That difference is printed; the one in fp64, where
nothing but another computation makes one, must be below BOUND.
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
from typing import Any

from few import STAGES, WEIGHTS, arguments, dcclip, few_pairs
from safetensors.torch import load_file

TIMEOUT_S = 180
BOUND = 1e-12
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options = parser.parse_args()
    root = options.work.resolve() / "processes"
    shutil.rmtree(root, ignore_errors=True)
    pairs = few_pairs(root)
    wrong = 0
    for stage in options.stages:
        alone, two = root / "one/run", root / "two/run"
        first = root / f"first-{stage}/run"
        for folder, sets in (
            (alone, SETS),
            (first, (*SETS, f"{stage}.steps=1", f"{stage}.warmup_steps=0")),
        ):
            subprocess.run(
                dcclip(*arguments(stage, pairs, folder, *sets)),
                check=True,
                stdout=subprocess.DEVNULL,
            )
        moved = difference(alone / stage / WEIGHTS, first / stage / WEIGHTS)
        print(f"{stage}: weights move by up to {moved:.1e} after the first step")
        digests = set[str]()
        for number in range(1, options.runs + 1):
            shutil.rmtree(two.parent, ignore_errors=True)
            begin = time.monotonic()
            command = arguments(stage, pairs, two, *SETS)
            by_torchrun = number % 2 == 0
            ended = ends(
                torchrun("-m", "dcclip_cli", *command)
                if by_torchrun
                else dcclip(*command, "--processes", "2")
            )
            seconds = time.monotonic() - begin
            furthest = (
                difference(alone / stage / WEIGHTS, two / stage / WEIGHTS)
                if ended
                else float("inf")
            )
            digests.add(
                hashlib.sha256((two / stage / WEIGHTS).read_bytes()).hexdigest()
                if ended
                else "none"
            )
            wrong += not ended or len(digests) > 1
            print(
                f"{stage} {number:>2} "
                f"{'torchrun' if by_torchrun else '--processes':<11}: {seconds:.1f} s, "
                f"largest difference of a weight {furthest:.1e}, "
                f"sha256 {sorted(digests)[0][:12]}{' AND OTHERS' if len(digests) > 1 else ''}",
                flush=True,
            )
        exact = in_double(stage, pairs, root)
        wrong += exact > BOUND
        print(f"{stage}: in fp64, largest difference of a weight {exact:.1e}", flush=True)
    stages = " and ".join(options.stages)
    print(
        f"{options.runs} runs of {stages} in a row, {wrong} that hung, differ in bits, "
        f"or in fp64 by over {BOUND:g}"
    )
    sys.exit(bool(wrong))


def torchrun(*given: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *given,
    ]


def in_double(stage: str, pairs: Path, root: Path) -> float:
    """The largest difference of a weight between two processes and one, both in fp64."""
    folders = [root / "one-fp64/run", root / "two-fp64/run"]
    command_alone, two = (
        [__file__, "--fp64", *arguments(stage, pairs, folder, *SETS)] for folder in folders
    )
    if not ends([sys.executable, *command_alone]) or not ends(torchrun(*two)):
        return float("inf")
    return difference(*(folder / stage / WEIGHTS for folder in folders))


def ends(command: list[str]) -> bool:
    """Whether a command ended by itself. An error in it ends this script."""
    process = subprocess.Popen(
        command,
        process_group=0,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    try:
        if code := process.wait(TIMEOUT_S):
            raise SystemExit(f"{command} ended with {code}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference between two files of weights of the same names."""
    first_weights, right = load_file(one), load_file(other)
    assert first_weights.keys() == right.keys()
    return max(float((first_weights[name] - right[name]).abs().max()) for name in first_weights)


def double() -> None:
    """`dcclip` in fp64: all that becomes a float once the trainer is made becomes a double."""
    import torch

    from dcclip_cli.__main__ import main
    from dcclip_cli.train import trainer

    class DoubleTrainer(trainer.Trainer):
        def __init__(self, stage: Any) -> None:
            torch.set_default_dtype(torch.float64)
            torch.Tensor.float = torch.Tensor.double
            stage.task.double()
            super().__init__(stage)

    trainer.Trainer = DoubleTrainer
    sys.argv.remove("--fp64")
    main()


if __name__ == "__main__":
    double() if sys.argv[1:2] == ["--fp64"] else main()
