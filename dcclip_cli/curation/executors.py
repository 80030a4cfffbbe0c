"""Who runs the tasks of a pass? datatrove's executors: worker processes here, a Ray cluster, or Slurm."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from dcclip_cli.curation.cluster import ClusterOptions
from dcclip_cli.curation.workers import LocalExecutor, silence
from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import cores

EngineName = Literal["local", "ray", "slurm"]

_ASK_SLURM_S = 5.0


@dataclass(frozen=True)
class Engine:
    """How tasks are run: where, and how many at a time (None: as many as there are cores, or as the cluster gives)."""

    name: EngineName = "local"
    workers: int | None = None
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    def run(self, steps: Sequence[PipelineStep], tasks: int, logs: Path) -> None:
        """Do all tasks of a pass that are not marked as done in `logs`. Raises DcclipError where some have failed."""
        silence()
        if self.name == "ray":
            executor = self._ray(steps, tasks, logs)
        elif self.name == "slurm":
            executor = self._slurm(steps, tasks, logs)
        else:
            workers = min(tasks, self.workers or cores())
            executor = LocalExecutor(list(steps), tasks, workers, logging_dir=str(logs))
        if self.name == "slurm":
            _on_slurm(executor, logs)
        else:
            executor.run()
        if failed := executor.get_incomplete_ranks(skip_completed=True):
            raise DcclipError(
                f"{len(failed)} of {tasks} tasks failed, the first is {failed[0]}",
                f"see why in {logs}, then run the same command again: it does the missing ones",
            )

    def _ray(self, steps: Sequence[PipelineStep], tasks: int, logs: Path) -> PipelineExecutor:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from datatrove.executor.ray import RayPipelineExecutor

        options = self.cluster.ray
        if not ray.is_initialized():
            cores = self.workers if options.address is None else None
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            ray.init(address=options.address, num_cpus=cores, **quiet)
        return RayPipelineExecutor(
            list(steps),
            tasks,
            self.workers or -1,
            logging_dir=str(logs),
            cpus_per_task=options.cpus,
            mem_per_cpu_gb=options.memory_gb / options.cpus,
        )

    def _slurm(self, steps: Sequence[PipelineStep], tasks: int, logs: Path) -> PipelineExecutor:
        from datatrove.executor.slurm import SlurmPipelineExecutor

        options = self.cluster.slurm
        if options is None:
            raise DcclipError(
                "--engine slurm needs a partition", "give it with: --set collect.cluster.slurm.partition=NAME"
            )
        return SlurmPipelineExecutor(
            list(steps),
            tasks,
            options.time,
            options.partition,
            cpus_per_task=options.cpus,
            mem_per_cpu_gb=options.memory_gb,
            workers=self.workers or -1,
            job_name=f"dcclip-{logs.name}",
            qos=options.qos,
            env_command=options.setup or f"export PATH={Path(sys.executable).parent}:$PATH",
            sbatch_args=dict(options.sbatch),
            logging_dir=str(logs.absolute()),
        )


def _on_slurm(executor: Any, logs: Path) -> None:
    """Submit the tasks, unless a command that was stopped while waiting has done so, and wait until none is left."""
    mark = logs / "job"
    if not (mark.exists() and _in_queue(mark.read_text("utf-8"))):
        executor.run()
        logs.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(executor.job_id), encoding="utf-8")
    while executor.get_incomplete_ranks(skip_completed=True) and _in_queue(mark.read_text("utf-8")):
        time.sleep(_ASK_SLURM_S)


def _in_queue(job: str) -> bool:
    """Whether Slurm still has tasks of a job, waiting or running."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True)
    return bool(asked.stdout.strip())
