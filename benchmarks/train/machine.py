"""Training speed by precision and by how long waiting threads spin, on this machine, idle and with other work.

    python benchmarks/train/machine.py WORK precision [--plain] [--rounds 3] [--steps 60]
    python benchmarks/train/machine.py WORK spinning [--plain] [--rounds 3] [--steps 60]
    python benchmarks/train/machine.py WORK newton-schulz [--plain]

precision: stage 1 of recipes/emoji.yaml, `precision: auto` against fp32 and bf16 for everything, by turns.
spinning: the same with libgomp's own wait, with dcclip's and with none, idle and beside a job of two threads.
newton-schulz: Muon's iteration alone, for matrices of the students' shapes, fp32 against bf16.
--plain holds torch to AVX2, as on a processor without AVX-512 and bf16.
The teacher's features are made first and not timed. Images a second are medians of the log's spans, the first one of
a run left out.
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
from collections.abc import Mapping
from pathlib import Path

from dcclip_cli.machine import cores, cpu_name, machine_class

RECIPE = Path(__file__).resolve().parents[2] / "recipes/emoji.yaml"
PLAIN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
SPAN, SLOW_STEPS = 10, 3  # steps between two entries of the log; steps in emulated bf16, of which one takes seconds
PRECISIONS = {
    "auto": {"precision": "auto", "newton_schulz": "auto"},
    "fp32": {"precision": "fp32", "newton_schulz": "fp32"},
    "bf16": {"precision": "bf16", "newton_schulz": "bf16"},
}
WAITS: Mapping[str, Mapping[str, str]] = {
    "libgomp's own": {"GOMP_SPINCOUNT": "300000"},  # its default
    "dcclip's": {},
    "none": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
}
NEIGHBOUR = "import torch; torch.set_num_threads(2); a = torch.randn(700, 700)\nwhile True: a @ a"
SHAPES = ((64, 576), (192, 192), (192, 768), (768, 192), (256, 2304), (512, 512))


def images_per_second(work: Path, steps: int, settings: Mapping[str, str], environment: Mapping[str, str]) -> float:
    """Stage 1 of the recipe for some steps, in a run folder of its own."""
    sets = {
        "distill.steps": steps,
        "distill.threads": "null",  # what dcclip chooses
        "distill.log_every_steps": min(SPAN, steps // 2 or 1),
        "teacher.precision": "fp32",  # of features that are made once, not of the steps
        "distill.precision": settings["precision"],
        "distill.optimizer.newton_schulz": settings["newton_schulz"],
    }
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "dcclip_cli", "distill", str(RECIPE), "--out", str(run), "-q", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    lines = [json.loads(line) for line in (run / "distill/metrics.jsonl").read_text("utf-8").splitlines()]
    return statistics.median(line["images_per_second"] for line in lines[1:] or lines)


def by_precision(work: Path, rounds: int, steps: int, environment: Mapping[str, str]) -> None:
    emulated = bool(environment) or machine_class() == "plain"
    found: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for _ in range(rounds):
        for name, settings in PRECISIONS.items():
            wanted = SLOW_STEPS if name == "bf16" and emulated else steps
            found[name].append(images_per_second(work, wanted, settings, environment))
    show(found)
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(f"auto: {medians['auto'] / max(medians['fp32'], medians['bf16']):.2f} x the better fixed precision")


def by_wait(work: Path, rounds: int, steps: int, environment: Mapping[str, str]) -> None:
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for beside in ("idle", "beside two threads"):
            for name, wait in WAITS.items():
                wanted = 2 * SLOW_STEPS if beside != "idle" and name == "libgomp's own" else steps
                command = [sys.executable, "-c", NEIGHBOUR]
                neighbour = None if beside == "idle" else subprocess.Popen(command, env={**os.environ, **environment})
                try:
                    speed = images_per_second(work, wanted, PRECISIONS["auto"], {**environment, **wait})
                finally:
                    if neighbour is not None:
                        neighbour.kill()
                        neighbour.wait()
                found.setdefault(f"{name}, {beside}", []).append(speed)
    show(found)
    medians = {name: statistics.median(values) for name, values in found.items()}
    idle, beside = medians["dcclip's, idle"], medians["dcclip's, beside two threads"]
    own = medians["libgomp's own, idle"]
    print(f"idle: {idle / own:.2f} x libgomp's own")
    print(f"beside two threads: {beside / idle:.2f} x idle")


def show(found: Mapping[str, list[float]]) -> None:
    for name, values in found.items():
        print(f"{name:<32}{statistics.median(values):6.0f} images/s   ({', '.join(f'{one:.0f}' for one in values)})")


def newton_schulz() -> None:
    import torch
    from timm.optim.muon import zeropower_via_newtonschulz

    coefficients = [(3.4445, -4.7750, 2.0315)]
    for shape in SHAPES:
        gradient = torch.randn(shape)
        times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
        for _ in range(12):
            for dtype, several in times.items():
                begin = time.perf_counter()
                zeropower_via_newtonschulz(gradient, 5, coefficients, dtype=dtype)
                several.append(time.perf_counter() - begin)
        fp32, bf16 = (1000 * statistics.median(several[2:]) for several in times.values())
        print(f"{shape[0]:>4} x {shape[1]:<5} fp32 {fp32:8.2f} ms   bf16 {bf16:8.2f} ms   bf16 is {fp32 / bf16:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("what", choices=["precision", "spinning", "newton-schulz"])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    environment = PLAIN if given.plain else {}
    kind = f"{machine_class()}, held to AVX2" if given.plain else machine_class()
    print(f"{cpu_name()}, {cores()} cores, {kind}", flush=True)
    if given.what == "newton-schulz":
        if given.plain and PLAIN.items() - os.environ.items():  # torch reads them when it is imported
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PLAIN})
        newton_schulz()
        return
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    images_per_second(work, 2, PRECISIONS["fp32"], environment)
    (by_precision if given.what == "precision" else by_wait)(work, given.rounds, given.steps, environment)


if __name__ == "__main__":
    main()
