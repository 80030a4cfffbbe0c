"""Peak memory, time, size and parity of exports of a model, each in a process of its own.

python benchmarks/export/memory.py --model hf:/path/to/AltCLIP --calibration photos/ --work DIR [--precision int8]

DIR/PRECISION is the bundle. Peak memory is the largest resident set of the process, in which mapped files count. After
each export, `dcclip predict` classifies an image with the bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

EXPORT = "import json, sys, dcclip_cli; dcclip_cli.export(**json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Finished:
    """A command that ended: what it wrote to stdout and stderr, its time, CPU time, and largest resident set."""

    output: str
    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(*command: str | Path) -> Finished:
    """Run Python with these arguments."""
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    return Finished(output, process.returncode, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True, help="pairs or a folder of images, also used for parity")
    parser.add_argument("--image", help="an image for predict")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--precision", action="append", choices=("fp32", "fp16", "int8"))
    parser.add_argument(
        "--any-agreement", action="store_true", help="for random weights, whose best texts are nearly tied"
    )
    given = parser.parse_args()
    print("| precision | peak GB | s | CPU s | MB | image, text difference | same best text | kept in fp32 | predict |")
    print("|---|---|---|---|---|---|---|---|---|")
    for precision in given.precision or ("fp32", "int8"):
        out = given.work / precision
        options = {"precision": precision, "calibration": given.calibration}
        if given.any_agreement:
            options["parity"] = {"min_agreement": 0}
        done = run("-c", EXPORT, json.dumps({"model": given.model, "out": str(out), **options}))
        costs = f"{done.peak_bytes / 1e9:.2f} | {done.seconds:.0f} | {done.cpu_seconds:.0f}"
        if done.code:
            print(f"| {precision} | {costs} | {' '.join(done.output.strip().splitlines()[-2:])} |", flush=True)
            continue
        about = json.loads((out / "dcclip.json").read_text("utf-8"))
        parity, size = about["parity"], sum(file.stat().st_size for file in out.iterdir())
        differences = f"{parity['image_max_difference']:.1g}, {parity['text_max_difference']:.1g}"
        row = f"{precision} | {costs} | {size / 1e6:.1f} | {differences} | {parity['agreement']:.1%}"
        print(f"| {row} | {about['kept_fp32'] or 'nothing'} | {predicted(out, given.image)} |", flush=True)


def predicted(bundle: Path, image: str | None) -> str:
    """What `dcclip predict` costs with a bundle, or its error."""
    if image is None:
        return "not run"
    done = run("-m", "dcclip_cli", "predict", "--model", bundle, image, "--labels", "猫,a dog,汽车")
    costs = f"{done.seconds:.1f} s, {done.peak_bytes / 1e9:.2f} GB"
    return (
        f"{costs}: {' '.join(done.output.split()[-8:])}" if done.code == 0 else f"failed: {done.output.strip()[-200:]}"
    )


if __name__ == "__main__":
    main()
