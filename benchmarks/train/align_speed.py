"""Speed of align compared with open_clip's own trainer: the same model, images, batches, precision
and threads.

    pip install 'open_clip_torch[training]'
    python benchmarks/train/align_speed.py WORK [--rounds 2] [--steps 50] [--threads 2]

The quick start's student, batches of 128 images with one English caption each, random crops,
AdamW, one loading process; by turns, each in a process of its own. Images per second, loading
included, without the first ten steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import open_clip_trainer

from dcclip_cli.data.dataset import open_pairs
from dcclip_cli.recipe.load import load
from dcclip_cli.train.student import new_student
from dcclip_cli.train.teacher import widths

RECIPE = Path(__file__).with_name("small.yaml")
BATCH_SIZE = 128
SETS = (
    "align.losses=[]",
    "align.captions={languages: [en], first: 0.7}",
    "align.augment={crop: 0.9}",
    "align.optimizer={lr: 1e-3, weight_decay: 0.05}",
    "align.log_every_steps=10",
    f"align.batch_size={BATCH_SIZE}",
)


def ours(start: Path, folder: Path, steps: int, precision: str, threads: int) -> float:
    """Seconds of a step of `dcclip align`, from its log."""
    sets = [*SETS, f"align.start={start}", f"align.steps={steps}", f"align.precision={precision}"]
    flags = [part for setting in (*sets, f"align.threads={threads}") for part in ("--set", setting)]
    command = [
        sys.executable,
        "-m",
        "dcclip_cli",
        "align",
        str(RECIPE),
        "--out",
        str(folder),
        "-q",
        *flags,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [
        json.loads(line)
        for line in (folder / "align/metrics.jsonl").read_text("utf-8").splitlines()
    ]
    spans = [line for line in lines if line["step"] % 10 == 0][
        1:
    ]  # of ten steps each, like open_clip's
    return statistics.mean(BATCH_SIZE / line["images_per_second"] for line in spans)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"]
    )
    parsed = parser.parse_args()
    root = parsed.work.resolve() / "align-speed"
    shutil.rmtree(root, ignore_errors=True)
    recipe = load(RECIPE, []).recipe
    assert recipe.student is not None and recipe.teacher is not None and recipe.data is not None
    table, teacher = open_pairs(str(recipe.data.train)), recipe.teacher.load("cpu")
    start = root / "start"
    new_student(
        recipe.student,
        widths(teacher, ()).embedding,
        table,
        "start",
        0,
        recipe.teacher.source,
        teacher,
    ).save(start, {})
    rows = open_clip_trainer.write_rows(
        root, root / "pictures", table, parsed.steps, BATCH_SIZE, 0, ["en"]
    )
    for precision, theirs in (("fp32", "fp32"), ("bf16", "amp_bf16")):
        if precision not in parsed.precisions:
            continue
        measured: dict[str, list[float]] = {"dcclip": [], "open_clip": []}
        for number in range(parsed.rounds):
            folder = root / f"{precision}-{number}"
            measured["dcclip"].append(ours(start, folder, parsed.steps, precision, parsed.threads))
            open_clip_trainer.train(
                start, rows, folder, BATCH_SIZE, theirs, 0, threads=parsed.threads
            )
            measured["open_clip"].append(open_clip_trainer.seconds_of_a_step(folder))
            summary = ", ".join(
                f"{name} {BATCH_SIZE / times[-1]:.0f}" for name, times in measured.items()
            )
            print(f"{precision}, round {number + 1}: {summary} images/s", flush=True)
        fastest = {name: BATCH_SIZE / statistics.median(times) for name, times in measured.items()}
        print(
            f"{precision}: dcclip {fastest['dcclip']:.0f} images/s, open_clip "
            f"{fastest['open_clip']:.0f}: "
            f"{fastest['dcclip'] / fastest['open_clip']:.2f} x",
            flush=True,
        )


if __name__ == "__main__":
    main()
