"""Commands that are killed at random moments and run again, compared with what an unbroken run
leaves, byte by byte.

    python benchmarks/dev/kill_commands.py WORK [--times 4] [--only collect,distill,align,run,export,fit]

Each time a command starts anew, its processes are killed with signal 9 at a random moment of its
life, and it is run again: its weights, exports, shards and results must be those of an unbroken
run. `fit` goes on from measurements of the unbroken one, since another measurement would choose
other steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml
from few import STAGES, dcclip
from kill import started

from dcclip_cli.data.dataset import open_pairs, write_parquet

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/quickstart.yaml"
SETS = (
    "steps=12",
    "batch_size=16",
    "warmup_steps=2",
    "log_every_steps=1",
    "validate_every_steps=4",
    "keep=best",
)
SETS += ("checkpoint_every_steps=2", "threads=1", "workers=1", "augmentations=1")
OF_EXPORT = (
    "export.calibration_images=16",
    "export.parity.min_agreement=0",
    "export.parity.max_accuracy_loss=100",
)
COMPARED = {".safetensors", ".onnx", ".tar", ".parquet"}
PAIRS = 128


@dataclass(frozen=True)
class Command:
    """Its arguments, the folder that it writes, and how the folder is made ready from the unbroken
    run's.
    """

    arguments: list[str]
    out: Path
    prepare: Callable[[Path], object] = lambda out: None


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of the files of results, but not of the state to resume from, nor of what a kill
    left hidden.
    """
    names = dict[str, str]()
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        if file.suffix not in COMPARED or "state" in parts or is_hidden:
            continue
        if not parts[0].startswith(("rounds", "shared")):
            names["/".join(parts)] = hashlib.sha256(file.read_bytes()).hexdigest()
    return names


def commands(root: Path) -> dict[str, Command]:
    table = open_pairs(str(ROOT / "recipes/quickstart/train.parquet"))
    pairs = root / "few.parquet"
    write_parquet(pairs, [table[number] for number in range(PAIRS)])
    collect = root / "collect.yaml"
    source = {"kind": "table", "path": str(pairs), "license": "MIT"}
    collect.write_text(
        yaml.safe_dump({"name": "collected", "collect": {"sources": [source], "shard_size": 16}}),
        "utf-8",
    )
    whole = root / "whole-run"

    def without(*stages: str) -> Callable[[Path], object]:
        ignore = shutil.ignore_patterns(*stages)
        return lambda out: shutil.copytree(whole, out, ignore=ignore, dirs_exist_ok=True)

    def measured(out: Path) -> None:
        state = json.loads((root / "whole-fit/fit.json").read_text("utf-8"))
        kept = {
            name: value
            for name, value in state.items()
            if name not in ("final", "missed", "result")
        }
        out.mkdir()
        shutil.copy(root / "whole-fit/texts.txt", out)
        (out / "fit.json").write_text(json.dumps(kept | {"rounds": []}), "utf-8")

    def of_stage(name: str, *missing: str) -> Command:
        out = root / name
        values = [
            f"data.train={pairs}",
            f"data.validation={pairs}",
            f"eval.datasets=[{pairs}]",
            *OF_EXPORT,
        ]
        values += [f"{stage}.{pair}" for stage in STAGES for pair in SETS]
        sets = [part for value in values for part in ("--set", value)]
        prepare = without(*missing) if missing else lambda out: None
        if name == "export":
            sets += ["--model", str(whole)]
        return Command([name, str(RECIPE), "--out", str(out), "-q", *sets], out, prepare)

    search = [
        "fit",
        "--data",
        str(pairs),
        "--teacher",
        str(ROOT / "recipes/quickstart/teacher"),
        "--max-mb",
        "4",
    ]
    search += ["--max-ms", "1000", "--out", str(root / "fit"), "-q"]
    return {
        "collect": Command(
            ["collect", str(collect), "--out", str(root / "collect"), "-q"], root / "collect"
        ),
        "run": of_stage("run"),
        "distill": of_stage("distill"),
        "align": of_stage("align", "align", "eval", "export"),
        "export": of_stage("export"),
        "fit": Command(search, root / "fit", measured),
    }


def run(command: Command, cache: Path, after_s: float | None = None) -> float:
    """Run a command; the seconds that it took, 0 if it was killed. Ends the program if it fails."""
    begin_s = time.monotonic()
    with (cache.parent / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            dcclip(*command.arguments), process_group=0, stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            code = process.wait(after_s)
        except subprocess.TimeoutExpired:
            for program in started(cache):
                program.kill()
            process.wait()
            return 0.0
    if code:
        raise SystemExit(
            f"{command.arguments} ended with "
            f"{code}:\n{(cache.parent / 'stderr').read_text('utf-8')}"
        )
    return time.monotonic() - begin_s


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--times", type=int, default=4, help="kills of each command")
    parser.add_argument("--only", default="collect,run,distill,align,export,fit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = options.work.resolve() / "kill-commands"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    cache = root / "cache"
    os.environ |= {"DCCLIP_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    random, kills, wrong = Random(options.seed), 0, 0
    for name, command in commands(root).items():
        if name not in options.only.split(",") and name != "run":
            continue
        whole = root / f"whole-{name}"
        if name != "fit":
            command.prepare(command.out)
        whole_s = run(command, cache)
        expected = digests(command.out)
        command.out.rename(whole)
        print(f"{name}: unbroken in {whole_s:.0f} s, {len(expected)} files compared", flush=True)
        done = 0 if name in options.only.split(",") else options.times
        while done < options.times:
            for folder in (command.out, cache / "teacher-cache"):
                shutil.rmtree(folder, ignore_errors=True)
            command.prepare(command.out)
            after_s = random.uniform(0.2, 1) * whole_s
            if run(command, cache, after_s):
                continue
            run(command, cache)
            is_same = digests(command.out) == expected
            done, kills, wrong = done + 1, kills + 1, wrong + (not is_same)
            print(
                f"{name}: killed after {after_s:.1f} s: {'same' if is_same else 'OTHER BYTES'}",
                flush=True,
            )
    print(f"{kills} kills, {wrong} with other bytes")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
