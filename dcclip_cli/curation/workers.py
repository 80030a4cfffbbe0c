"""Who runs tasks on this machine? Worker processes that never outlive the command."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from multiprocessing.context import BaseContext

from datatrove.executor.local import LocalPipelineExecutor

from dcclip_cli.errors import DcclipError
from dcclip_cli.processes import begin_worker


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's tasks in worker processes that end whenever this process does, killed or stopped.

    datatrove's own `run` keeps a manager process, which a killed command leaves behind, waits for ever for a worker
    that was killed, and keeps every task's statistics in memory.
    """

    def run(self) -> None:
        """Do the tasks that are not marked as done. Raises DcclipError where a worker was killed."""
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self._run_for_rank(rank, rank)
            return
        if "forkserver" in multiprocessing.get_all_start_methods():
            context: BaseContext = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["dcclip_cli.curation.passes", "pyarrow.parquet"])
        else:  # Windows
            context = multiprocessing.get_context("spawn")
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self.workers, context, _begin_worker, (self,))
        try:
            for task in as_completed([pool.submit(_do_task, rank) for rank in ranks]):
                task.result()
            pool.shutdown()
        except BrokenProcessPool:
            raise DcclipError(
                "a worker process was killed: probably out of memory",
                "run the same command again with fewer --workers, or with a smaller collect.shard_size",
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise


_mine: list[LocalExecutor] = []  # a worker's executor


def _begin_worker(executor: LocalExecutor) -> None:
    silence()
    begin_worker()
    _mine[:] = [executor]


def _do_task(rank: int) -> None:
    executor = _mine[0]
    pipeline = executor.pipeline
    executor.pipeline = deepcopy(pipeline)  # whose steps gather a task's statistics
    executor._run_for_rank(rank, rank)
    executor.pipeline = pipeline


def silence() -> None:
    """Keep datatrove's logger off the terminal."""
    from loguru import logger

    logger.disable("datatrove")
