"""The steps of `collect`, and the engines that run their tasks: worker processes, a Ray cluster,
Slurm job arrays.
"""

import logging
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, chdir, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.machine import cores
from dcclip_cli.core.processes import calls, process_pool
from dcclip_cli.curation import IMPORTS
from dcclip_cli.curation.dedup.dedup import dedup
from dcclip_cli.curation.options import ClusterOptions, CollectOptions
from dcclip_cli.curation.scores import score_slice
from dcclip_cli.curation.slices import filter_pairs, keep_slice, read_pairs, write_slice
from dcclip_cli.curation.sources.base import Candidate
from dcclip_cli.curation.work import PAIRS, SCORES, WorkFolder, name_of, whole_folder

_ASK_SLURM_S = 5.0
_LARGEST_ARRAY = 1_000  # tasks of one job array; Slurm's MaxArraySize is 1001 by default
_SCRIPT = """#!/bin/bash
{directives}
set -e
{setup}
exec python -P -m dcclip_cli.curation.executors {step} $(($1 + SLURM_ARRAY_TASK_ID))
"""


class Step(ABC):
    """`tasks` independent tasks, numbered from 0. A step is pickled for worker processes and
    cluster nodes.
    """

    name: str
    tasks: int

    @abstractmethod
    def done(self, task: int) -> bool:
        """Whether the result of a task exists, which it creates atomically, as the last thing that
        it does.
        """

    @abstractmethod
    def run(self, task: int) -> None:
        """Do one task."""

    def run_and_return(self, task: int) -> int:
        self.run(task)
        return task


@dataclass(frozen=True)
class _CollectStep(Step):
    options: CollectOptions
    work: WorkFolder
    tasks: int

    def done(self, task: int) -> bool:
        return self.work.result(self.name, task).exists()


class ReadStep(_CollectStep):
    """Reads a slice, fetches images known by URL, and filters each pair by itself."""

    name = "read"

    def run(self, task: int) -> None:
        from dcclip_cli.curation.fetch.fetcher import Fetcher, fetch_in_order

        fetch = self.options.fetch
        with whole_folder(self.work.result("read", task)) as folder, Fetcher(fetch) as fetcher:
            candidates = fetch_in_order(
                self._candidates(task), fetcher.fetch, fetch.workers, fetch.per_host
            )
            keep_slice(folder, filter_pairs(candidates, self.options))

    def _candidates(self, task: int) -> Iterator[Candidate]:
        """The slice's candidates, each with its key and its source in the metadata."""
        assigned = self.work.assignment(task)
        source = self.options.sources[assigned.source]
        for index, candidate in enumerate(islice(source.read(assigned.part), assigned.at_most)):
            pair = candidate.pair
            origin = {
                "source": source.label,
                "origin": pair.key,
                "license": source.license,
                "url": candidate.url,
            }
            # The pair's own metadata takes precedence over the source's, except for nulls.
            meta: dict[str, Any] = {name: value for name, value in origin.items() if value}
            meta |= {name: value for name, value in pair.meta.items() if value is not None}
            names_class = (
                candidate.names_class or meta.get("names_class") is True
            )  # of what was collected before
            meta |= {"names_class": True} if names_class else {}
            pair = replace(
                pair, key=f"{name_of(task)}{index:06d}", meta=meta
            )  # keys sort in the order of reading
            yield replace(candidate, pair=pair, names_class=names_class)


class ScoreStep(_CollectStep):
    """Scores the pairs of a slice with the recipe's models."""

    name = "score"

    def run(self, task: int) -> None:
        with whole_folder(self.work.result("score", task)) as folder:
            pairs = (pair for pair, _ in read_pairs(self.work.result("read", task)))
            score_slice(pairs, self.options.scores, folder / SCORES)


class DedupStep(_CollectStep):
    """The single task that looks at all pairs of all slices at once."""

    name = "dedup"

    def run(self, task: int) -> None:
        options = self.options
        slices = range((self.work.plan() or {})["slices"])
        signatures = [self.work.result("read", number) / PAIRS for number in slices]
        scores = (
            [self.work.result("score", number) / SCORES for number in slices]
            if options.scores
            else []
        )
        with whole_folder(self.work.result("dedup", 0)) as out:
            dedup(signatures, scores, options, out, first=options.scores, needs=options.needs)


class WriteStep(_CollectStep):
    """Writes the shard of what remains of a slice."""

    name = "write"

    def run(self, task: int) -> None:
        write_slice(self.work, task, self.options)


@dataclass(frozen=True)
class Engine:
    """Where tasks run, and how many at a time (None: one for each core, or as many as the cluster
    allows).
    """

    name: Literal["local", "ray", "slurm"] = "local"
    workers: int | None = None
    cluster: ClusterOptions = field(default_factory=ClusterOptions)

    def check(self) -> None:
        """Raise DcclipError or ImportError where this engine cannot run here."""
        if self.name == "ray":
            import ray  # noqa: F401
        if self.name == "slurm" and self.cluster.slurm is None:
            raise DcclipError(
                "--engine slurm requires a partition",
                "set it with: --set collect.cluster.slurm.partition=NAME",
            )
        if self.name == "slurm" and shutil.which("sbatch") is None:
            raise DcclipError(
                "--engine slurm: sbatch is not installed", "run this command on a Slurm login node"
            )

    def started(self, tasks: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
        """Worker processes for all steps of up to so many tasks each, if that takes any."""
        number = min(tasks, self.workers or cores())
        return (
            process_pool(number, IMPORTS) if self.name == "local" and number > 1 else nullcontext()
        )

    def run(
        self,
        step: Step,
        logs: Path,
        workers: ProcessPoolExecutor | None = None,
        tell: Callable[[int], None] = lambda task: None,
    ) -> None:
        """Do all unfinished tasks of a step, with `started` workers or with some of its own.

        `tell` is called with the number of each task once it is done. Raises DcclipError where
        tasks failed; clusters log them to `logs`.
        """
        pending = [task for task in range(step.tasks) if not step.done(task)]
        if not pending:
            return
        self.check()
        if self.name == "local":
            ended = self._on_this_machine(step, pending, workers)
        else:
            ended = (self._on_slurm if self.name == "slurm" else self._on_ray)(step, pending, logs)
        for task in ended:
            if step.done(task):
                tell(task)
        if failed := [task for task in pending if not step.done(task)]:
            message = Message(
                "{} of {} tasks failed; the first is {}", len(failed), step.tasks, failed[0]
            )
            raise DcclipError(
                message,
                "fix the cause (see {}), then run the same command again: only "
                "unfinished tasks run",
                logs,
            )

    def _on_this_machine(
        self, step: Step, pending: list[int], workers: ProcessPoolExecutor | None
    ) -> Iterator[int]:
        """Yields tasks as they end. Raises a task's error, or DcclipError if a worker process is
        killed.
        """
        with nullcontext(workers) if workers else self.started(len(pending)) as pool:
            if pool is None or len(pending) == 1:
                yield from map(step.run_and_return, pending)
            else:
                hint = Message(
                    "run the same command again with fewer --workers, or reduce collect.shard_size"
                )
                yield from calls(pool, step.run_and_return, pending, hint)

    def _on_ray(self, step: Step, pending: list[int], logs: Path) -> Iterator[int]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if not ray.is_initialized():
            local_cores = None if os.environ.get("RAY_ADDRESS") else self.workers
            if paths := os.environ.get("PYTHONPATH"):
                os.environ["PYTHONPATH"] = os.pathsep.join(
                    map(os.path.abspath, paths.split(os.pathsep))
                )
            with chdir(sys.prefix):  # Ray's workers import from the current folder first
                ray.init(num_cpus=local_cores, log_to_driver=False, logging_level=logging.ERROR)
        remote = ray.remote(lambda step, task: step.run(task))
        shared = ray.put(step)
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
            yield task

    def _on_slurm(self, step: Step, pending: list[int], logs: Path) -> Iterator[int]:
        """Submit job arrays, unless those of an interrupted command are still in the queue, and
        wait for them.
        """
        last_job = logs / "job"
        told = set[int]()
        if not (last_job.exists() and _in_queue(last_job.read_text("utf-8"))):
            options = self.cluster.slurm
            assert options is not None  # `check`
            logs.mkdir(parents=True, exist_ok=True)
            pickled = logs.absolute() / "step.pickle"
            script = logs / "job.sh"
            pickled.write_bytes(pickle.dumps((step, pending)))
            directives = {
                "partition": options.partition,
                "time": options.time,
                "cpus-per-task": str(options.cpus),
                "mem-per-cpu": f"{options.memory_gb}G",
                "job-name": f"dcclip-{step.name}",
                "output": str(logs.absolute() / "%A_%a.log"),
                **options.sbatch,
            }
            lines = "\n".join(f"#SBATCH --{name}={value}" for name, value in directives.items())
            setup = (
                options.setup
                or f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
            )
            text = _SCRIPT.format(directives=lines, setup=setup, step=shlex.quote(str(pickled)))
            script.write_text(text, encoding="utf-8")
            at_a_time = f"%{self.workers}" if self.workers else ""
            job = ""
            # arrays start one after the other
            for first in range(0, len(pending), _LARGEST_ARRAY):
                size = min(_LARGEST_ARRAY, len(pending) - first)
                command = ["sbatch", "--parsable", f"--array=0-{size - 1}{at_a_time}"]
                command += [f"--dependency=afterany:{job}"] if job else []
                sbatch = subprocess.run(
                    [*command, str(script), str(first)], capture_output=True, text=True
                )
                if sbatch.returncode:
                    reason = sbatch.stderr.strip()[:500]
                    raise DcclipError(
                        "sbatch failed: {}", "check collect.cluster and {}", reason, script
                    )
                job = sbatch.stdout.strip().partition(";")[0]
                last_job.write_text(job, encoding="utf-8")
        queued = True
        while queued:
            queued = _in_queue(last_job.read_text("utf-8"))
            new = [task for task in pending if task not in told and step.done(task)]
            told.update(new)
            yield from new
            time.sleep(_ASK_SLURM_S if queued else 0)


def _in_queue(job: str) -> bool:
    """Whether tasks of a Slurm job are waiting or running; where squeue fails, the controller may
    only be busy.
    """
    squeue = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True)
    return (
        "Invalid job id" not in squeue.stderr if squeue.returncode else bool(squeue.stdout.strip())
    )


if __name__ == "__main__":  # a task of a Slurm array: the pickle is that of `_on_slurm`
    pickled_step, pending_tasks = pickle.loads(Path(sys.argv[1]).read_bytes())
    pickled_step.run(pending_tasks[int(sys.argv[2])])
