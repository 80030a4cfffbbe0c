"""SIGTERM, SIGINT and SIGHUP at random moments of every command, and the same command again.

    python -m benchmarks.hostile.signals WORK [--times 60] [--seed 0] [--only COMMAND ...]

A signal goes to the command alone, as from `kill`, or to all its processes, as from a terminal or Slurm. The command
must end with 128 + its number and one `stopped:` line, and leave no process and no temporary file two
seconds later; run again, it must not compute again what was kept, and give what an undisturbed run gives.

The moments are between the program's start and its end. Before that, the interpreter starts: nothing was begun.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from random import Random

from benchmarks.hostile.jobs import JOBS, Done, Runs, Task, Verdict, campaign, stopped, undisturbed
from benchmarks.hostile.kept import Kept, kept

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ENDS_S = 30
GOOD = ("as it must be", "had done its work")


def attempt(runs: Runs, whole: Path, task: Task) -> Verdict:
    """Stop a job at a random moment, start it again, and compare."""
    job, random, normal = JOBS[task.name], Random(task.seed), undisturbed(runs, whole, task.name)
    number, group = random.choice(SIGNALS), random.random() < 0.5
    runs.reset(job, whole)
    before = kept(runs.folder)
    running = stopped(runs, whole, task.name, random, number, group)
    moment, done = running.seconds, running.wait(ENDS_S)
    faults = [f"left a process: {one}" for one in runs.left_alive()]
    faults += [f"left a file: {one}" for one in runs.partial()]
    there, finished = kept(runs.folder), not runs.differing(job, done, normal)
    if not finished:
        faults += [*done.faults, *stop_faults(done, number)]
    again = runs.run(job)
    faults += again_faults(runs, again, there)
    if other := runs.differing(job, again, normal):
        faults.append(f"other results: {', '.join(other)}")
    said = next((line for line in done.said.splitlines() if line.startswith("stopped: ")), "says nothing")
    to = f"{number.name} to {'all' if group else 'one'} after {moment:.1f} s"
    line = f"{to}, exit code {done.code}, kept {there.since(before)}: {said}"
    return Verdict(task.name, faults[0].partition(":")[0] if faults else GOOD[finished], "; ".join([line, *faults]))


def stop_faults(done: Done, number: int) -> list[str]:
    """What is wrong with how a command ended."""
    faults = [] if done.code == 128 + number else [f"exit code {done.code}"]
    said = [line for line in done.said.splitlines() if line.startswith("stopped: ")]
    return faults if len(said) == 1 else [*faults, f"{len(said)} lines about stopping"]


def again_faults(runs: Runs, again: Done, before: Kept) -> list[str]:
    """What is wrong with the same command again: it must not compute again what was kept."""
    faults = again.faults + ([f"ended again with: {again.code}, {again.said}"] if again.code else [])
    faults += [f"left a process again: {one}" for one in runs.left_alive()]
    faults += [f"left a file again: {one}" for one in runs.partial()]
    if twice := kept(runs.folder).twice:
        faults.append(f"computed again: {twice} rows")
    resumed = {int(step) for step in re.findall(r"resuming from step (\d+) ", again.said)}
    for stage, step in before.steps.items():
        if not any(part.endswith(f"{stage}/model") for part in before.parts) and step not in resumed:
            faults.append(f"trained again: {stage} had step {step}")
    return faults


if __name__ == "__main__":
    campaign(__doc__, list(JOBS), 60, attempt, GOOD, forked=False)
