"""Weights of training on two processes that is stopped at random moments and resumed, compared with an unbroken run's.

    python benchmarks/train/kill.py WORK [--signal KILL|TERM] [--times 20] [--first-seed 0]

Each time both stages start anew, are stopped at a random moment between the start of the first and the end of the
second, and are started again: loading, filling the teacher cache, steps, validation, saving. The sha256 of both stages'
weights must be that of the unbroken run. The stages run under torchrun; for one process see benchmarks/hostile.

KILL: all processes are killed with signal 9; a checkpoint is saved every four steps. TERM: every process gets SIGTERM,
loader workers too, as from Slurm or systemd, and torchrun sends its processes another one. No checkpoint is due: the
state of the last step must be there all the same. The command must exit within 30 s, with code 1, without a traceback
but that of torchrun itself, and leave no process behind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil
from few import STAGES, arguments, few_pairs, sha256

SETS = (
    "distill.steps=24",
    "align.steps=20",
    "batch_size=32",
    "texts_per_step=16",
    "warmup_steps=4",
    "workers=2",
    "log_every_steps=1",
    "validate_every_steps=6",
    "keep=best",
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--redirects", "3", "--log-dir"]
EXIT_S = 30


@dataclass(frozen=True)
class Commands:
    """What trains both stages into a folder; `marker` is in the environment of all its processes."""

    pairs: Path
    sets: Sequence[str]
    log: Path
    marker: str

    def of(self, out: Path) -> list[list[str]]:
        """The commands, one after the other."""
        launch = [sys.executable, *TORCHRUN, str(self.log), "-m", "dcclip_cli"]
        return [[*launch, *arguments(stage, self.pairs, out, *self.sets)] for stage in STAGES]

    def run(self, out: Path, after_s: float | None = None, number: int = signal.SIGKILL) -> int | None:
        """Run the commands and stop them after so many seconds; the exit code, None where they came to their end."""
        until = None if after_s is None else time.monotonic() + after_s
        for command in self.of(out):
            shutil.rmtree(self.log, ignore_errors=True)
            self.log.mkdir()
            with (self.log / "stderr").open("wb") as said:
                process = subprocess.Popen(command, process_group=0, stdout=subprocess.DEVNULL, stderr=said)
                try:
                    code = process.wait(None if until is None else max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    for one in self.alive():
                        one.send_signal(number)
                    try:
                        return process.wait(EXIT_S)
                    except subprocess.TimeoutExpired:
                        for one in self.alive():
                            one.kill()
                        return process.wait() and 0  # no code of a command that was stopped
            if code:
                raise SystemExit(f"{command} ended with {code}:\n{self.said()}")
        return None

    def alive(self) -> list[psutil.Process]:
        """All processes of the commands, whatever group they are in."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DCCLIP_CACHE") == self.marker and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:  # of another user, or ended
                continue
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def said(self) -> str:
        """What dcclip wrote on stderr, in all processes, without torchrun."""
        return "\n".join(file.read_text("utf-8", "replace") for file in self.log.rglob("[0-9]/stderr.log"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0, help="of the random moments; each one takes the next")
    given = parser.parse_args()
    root = given.work.resolve() / f"kill-{given.signal}"
    shutil.rmtree(root, ignore_errors=True)
    whole, broken, cache = root / "whole", root / "broken", root / "cache"
    os.environ |= {"DCCLIP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    pairs = few_pairs(root)
    term = given.signal == "TERM"
    sets = (f"data.texts={pairs}", *SETS, f"checkpoint_every_steps={1000 if term else 4}")
    commands = Commands(pairs, sets, root / "log", str(cache))
    begin, wall = time.monotonic(), time.time()
    commands.run(whole)
    whole_s, begins_s = time.monotonic() - begin, (whole / "resolved.yaml").stat().st_mtime - wall
    expected = sha256(whole)
    print(f"unbroken: {whole_s:.1f} s; {', '.join(f'{stage} {sha[:12]}' for stage, sha in expected.items())}")

    stops, seed, wrong = 0, given.first_seed, 0
    while stops < given.times:
        after_s = Random(seed).uniform(begins_s, whole_s)
        seed += 1
        for folder in (broken, cache / "teacher-cache"):
            shutil.rmtree(folder, ignore_errors=True)
        code = commands.run(broken, after_s, signal.Signals[f"SIG{given.signal}"])
        if code is None:
            continue
        stops += 1
        left = ", ".join(where(broken, cache)) or "nothing"
        faults = end_faults(commands, code, broken) if term else []
        commands.run(broken)
        faults += [] if sha256(broken) == expected else ["OTHER WEIGHTS"]
        wrong += bool(faults)
        print(f"{stops:>2} after {after_s:4.1f} s, left {left}: {', '.join(faults) or 'same'}", flush=True)
    print(f"{given.signal} {stops} times over both stages: {wrong} not as they must be")
    sys.exit(bool(wrong))


def end_faults(commands: Commands, code: int, run: Path) -> list[str]:
    """What was wrong with how a command ended after SIGTERM."""
    said = commands.said()
    # -15: torchrun that starts itself, before it has set its handler.
    faults = [] if code in (1, -15) else [f"exit code {code}"]
    if "Traceback" in said or "Exception ignored" in said:
        faults.append(f"a traceback:\n{said}\n")
    if left := commands.alive():
        faults.append(f"{len(left)} processes left")
    for stage in STAGES:
        log, states = run / stage / "metrics.jsonl", (run / stage / "state").glob("step-*")
        if not (run / stage / "model").is_dir() and log.is_file() and log.read_text():
            last = json.loads(log.read_text().splitlines()[-1])["step"]
            saved = max((int(path.name.removeprefix("step-")) for path in states), default=0)
            faults += [] if saved >= last else [f"{stage} lost {last - saved} steps"]
    return faults


def where(run: Path, cache: Path) -> list[str]:
    """How far a stopped run got: finished stages, saved states, blocks of the teacher cache."""
    found = []
    for stage in STAGES:
        if (run / stage / "model").is_dir():
            found.append(f"{stage} finished")
        else:
            found += [f"{stage} at {path.name}" for path in sorted((run / stage / "state").glob("step-*"))]
    blocks = len(list(cache.glob("teacher-cache/*/*/*.safetensors")))
    return found or [f"{blocks} blocks of the teacher cache"][: bool(blocks)]


if __name__ == "__main__":
    main()
