"""A disk that becomes full at a random moment of every command that writes, and the same command with space again.

    python -m benchmarks.hostile.disk WORK [--times 40] [--seed 0] [--only COMMAND ...]

The job's whole folder (data, cache, run, output) is on a small file system in memory, which only root may mount. A
file takes all of its space but a random part of what the job needs, before it starts, or nearly all at a random moment
of it. The command must end with exit code 1, an error that names a file in that folder and the free space, and a hint,
or do its work without what it could not keep; it must leave no temporary file, and give the undisturbed result once the
space is free again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from benchmarks.hostile.jobs import JOBS, Done, Runs, Task, Verdict, campaign, undisturbed
from benchmarks.hostile.kept import kept
from benchmarks.hostile.signals import again_faults

WRITE = [name for name in JOBS if name != "predict"]
SIZE = 96_000_000
BALLAST = "ballast"
GOOD = ("refused, and right again", "needed no space")


def attempt(runs: Runs, whole: Path, task: Task) -> Verdict:
    """Run a job with too little space, then with enough, and compare."""
    with mounted(runs.folder):
        return _attempt(runs, whole, task)


def _attempt(runs: Runs, whole: Path, task: Task) -> Verdict:
    job, random, normal = JOBS[task.name], Random(task.seed), undisturbed(runs, whole, task.name)
    while True:
        runs.reset(job, whole)
        room, from_start = int(random.uniform(0, normal.grown)), random.random() < 0.5
        if from_start:
            fill(runs.folder, room)
            running = runs.start(job)
            break
        running = runs.start(job)
        if not running.ends_within(random.uniform(0, normal.seconds)):
            fill(runs.folder, room := room % 65_536)
            break
    when = "at the start" if from_start else f"after {running.seconds:.1f} s"
    done = running.wait(120)
    enough = done.code == 0 and not runs.differing(job, done, normal)
    faults = done.faults if enough else disk_faults(done, runs.folder)
    faults += [f"left a process: {one}" for one in runs.left_alive()]
    faults += [f"left a file: {one}" for one in runs.partial()]
    (runs.folder / BALLAST).unlink()
    there = kept(runs.folder)
    again = runs.run(job)
    faults += again_faults(runs, again, there)
    if other := runs.differing(job, again, normal):
        faults.append(f"other results: {', '.join(other)}")
    said = [line for line in done.said.splitlines() if line.startswith(("error: ", "hint: ", "warning: "))]
    line = " | ".join([f"{room:,} of {normal.grown:,} bytes free {when}, exit code {done.code}", *said, *faults])
    return Verdict(task.name, faults[0].partition(":")[0] if faults else GOOD[enough], line)


def fill(folder: Path, room: int) -> None:
    """Leave so many bytes free on the file system of a folder."""
    with (folder / BALLAST).open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(folder).free - room))


def disk_faults(done: Done, folder: Path) -> list[str]:
    """What is wrong with how a command ended whose disk was full."""
    faults = done.faults + ([] if done.code == 1 else [f"exit code {done.code}"])
    errors = [line for line in done.said.splitlines() if line.startswith("error: ")]
    if not any(line.startswith("hint: ") for line in done.said.splitlines()):
        faults.append("no hint")
    names = (str(folder), "runs/", "cache/", "shards/", "e.npy", "e.txt")
    if not any(name in line for line in errors for name in names):
        faults.append("names no file")
    if not any("free" in line for line in errors):
        faults.append("does not tell the free space")
    return faults


def can_mount() -> bool:
    """Whether this process may mount a file system, as root outside of most containers may."""
    with TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Let the folder be a file system of its own in memory while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


if __name__ == "__main__":
    campaign(__doc__, WRITE, 40, attempt, GOOD, forked=True)
