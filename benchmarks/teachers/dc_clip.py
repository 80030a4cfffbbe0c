"""recipes/dc-clip.yaml from end to end with a full-size teacher and a few photographs: seconds and memory by stage.

python benchmarks/teachers/dc_clip.py TEACHER PHOTOS --work DIR [--images 200] [--steps 8]

TEACHER is a directory in the layout of BAAI/AltCLIP (make.py writes one with random weights), PHOTOS a folder of
ImageNet class folders. Everything is fp32. The recipe is changed only in what a GPU is needed for: its data, batches
and steps. Peak memory is the largest resident set of a stage's main process, in which mapped files count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.eval.photos import class_names
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.pair import Pair

RECIPE = Path(__file__).parents[2] / "recipes" / "dc-clip.yaml"


def pairs(photos: Path, count: int) -> list[Pair]:
    """One pair a photograph, with its class name and a sentence in both languages."""
    known = class_names(photos)
    found = []
    for number, wnid in enumerate(known.folders):
        name = {language: names[number] for language, names in known.names.items()}
        captions = {"zh": (name["zh"], f"一张{name['zh']}的照片"), "en": (name["en"], f"a photo of a {name['en']}")}
        found += [Pair(file.stem, file.read_bytes(), **captions) for file in sorted((photos / wnid).iterdir())]
    return found[:count]


def overrides(teacher: Path, work: Path, steps: int) -> list[str]:
    """The changes of the recipe: data, fp32, and batches that a CPU manages."""
    train, test = work / "train.parquet", work / "test.parquet"
    changed = {
        "teacher": {"model": teacher, "precision": "fp32"},
        "data": {"train": train, "validation": test},
        "distill": {"precision": "fp32", "epochs": "null", "steps": steps, "batch_size": 50, "workers": 1},
        "align": {"precision": "fp32", "epochs": "null", "steps": 4, "batch_size": 64, "workers": 1, "train": train},
        "eval": {"datasets": f"[{test}]", "precision": "fp32"},
        "export": {"calibration": train, "calibration_images": 32},
    }
    changed["distill"] |= {"warmup_steps": 2, "log_every_steps": 1}
    changed["align"] |= {"warmup_steps": 1, "validate_every_steps": 2, "log_every_steps": 1}
    return [f"--set={section}.{key}={value}" for section, keys in changed.items() for key, value in keys.items()]


def stage(name: str, arguments: Sequence[str | Path], work: Path) -> None:
    """Run a command, and print what it took; its own lines are in work/NAME.log."""
    begin = time.perf_counter()
    with (work / f"{name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, "-m", "dcclip_cli", *arguments], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    costs = f"{time.perf_counter() - begin:.0f} | {usage.ru_utime + usage.ru_stime:.0f} | {usage.ru_maxrss / 1e6:.2f}"
    print(f"| {name} | {costs} | {process.returncode} |", flush=True)
    if process.returncode:
        sys.exit((work / f"{name}.log").read_text("utf-8")[-2000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=8, help="of stage 1, 50 images each")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["DCCLIP_CACHE"] = str(work / "cache")
    found = pairs(given.photos, given.images)
    write_parquet(work / "train.parquet", found)
    write_parquet(work / "test.parquet", found[:: max(1, len(found) // 40)])
    run = work / "run"
    recipe = [RECIPE, *overrides(given.teacher.resolve(), work, given.steps), "--out", run]
    print("| stage | s | CPU s | peak GB | exit |\n|---|---|---|---|---|")
    stage("check", ["run", *recipe, "--check"], work)
    stage("distill", ["distill", *recipe], work)
    stage("align", ["align", *recipe], work)
    stage("eval, export and table", ["run", *recipe], work)
    stage(
        "predict",
        ["predict", "--model", run / "export", next(given.photos.rglob("*.jpg")), "--labels", "猫,dog"],
        work,
    )
    print((work / "eval, export and table.log").read_text("utf-8")[-1500:])
    about = json.loads((run / "export" / "dcclip.json").read_text("utf-8"))
    print({"parity": about["parity"]["agreement"], "kept_fp32": about.get("kept_fp32")})


if __name__ == "__main__":
    main()
