"""SIGKILL at random moments of every command that writes, and the same command again.

    python -m benchmarks.hostile.kills WORK [--times 60] [--seed 0] [--only COMMAND ...]

The signal goes to the command alone, whose workers must end within two seconds, or to all its processes. Run again, the
command must give what an undisturbed run gives, compute no stored row twice, resume training from the last state, and
remove the temporary files of the killed one.
"""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

from benchmarks.hostile.jobs import JOBS, Runs, Task, Verdict, campaign, stopped, undisturbed
from benchmarks.hostile.kept import kept
from benchmarks.hostile.signals import again_faults

WRITE = [name for name in JOBS if name not in ("predict", "run")]
GOOD = ("identical",)


def attempt(runs: Runs, whole: Path, task: Task) -> Verdict:
    """Kill a job at a random moment, start it again, and compare."""
    job, random, normal = JOBS[task.name], Random(task.seed), undisturbed(runs, whole, task.name)
    group = random.random() < 0.5
    runs.reset(job, whole)
    before = kept(runs.folder)
    running = stopped(runs, whole, task.name, random, signal.SIGKILL, group)
    moment = running.wait().seconds
    faults = [f"left a process: {one}" for one in runs.left_alive()]
    there, partial = kept(runs.folder), runs.partial()
    again = runs.run(job)
    faults += again_faults(runs, again, there)
    if other := runs.differing(job, again, normal):
        faults.append(f"other results: {', '.join(other)}")
    line = f"{'all' if group else 'one'} after {moment:.1f} s, left {', '.join([str(there.since(before)), *partial])}"
    return Verdict(task.name, faults[0].partition(":")[0] if faults else GOOD[0], "; ".join([line, *faults]))


if __name__ == "__main__":
    campaign(__doc__, WRITE, 60, attempt, GOOD, forked=False)
