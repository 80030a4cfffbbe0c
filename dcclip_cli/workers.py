"""Pools of worker processes, which end where a call fails or with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import TypeVar

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import keep_pandas_out
from dcclip_cli.signals import NUMBERS, ignore_signals

Argument = TypeVar("Argument")
Result = TypeVar("Result")

_ENVIRONMENT = {
    # Allocators that return freed memory: with Arrow's own, and an arena for each thread, a worker grows with tasks.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of what it removes after a kill
}


def preload(imports: Sequence[str]) -> None:
    """Start, unless it runs, the process that workers are forked from; from now on it imports what their calls need."""
    if not _forks():
        return
    from multiprocessing import forkserver, resource_tracker

    multiprocessing.set_forkserver_preload([__name__, *imports])
    added = _ENVIRONMENT.keys() - os.environ.keys()
    os.environ.update((name, _ENVIRONMENT[name]) for name in added)
    resource_tracker.ensure_running()  # which unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)  # in workers too, from their first moment on
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for name in added:
            del os.environ[name]


@contextmanager
def process_pool(number: int, imports: Sequence[str] = (), fresh: bool = False) -> Iterator[ProcessPoolExecutor]:
    """Up to so many worker processes, which end with the block.

    They have the modules `imports`, or are `fresh`: with nothing in their memory but what a call needs.
    """
    context: BaseContext = multiprocessing.get_context("spawn")
    if _forks() and not fresh:
        preload(imports)
        context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(number, context, begin_worker if fresh else _begin_pool_worker) as pool:
        try:
            yield pool
        except BaseException:
            for process in list(pool._processes.values()):  # pool.kill_workers() from Python 3.14 on
                process.kill()
            raise


def calls(
    pool: ProcessPoolExecutor, function: Callable[[Argument], Result], arguments: Iterable[Argument], hint: str
) -> Iterator[Result]:
    """The results of a function of a module, as they come.

    Raises what a call raises, or DcclipError with `hint` where a worker was killed.
    """
    try:
        with _no_script():
            futures = [pool.submit(function, argument) for argument in arguments]
        for done in as_completed(futures):
            yield done.result()
    except BrokenProcessPool as error:
        if error.__cause__:  # what it sent cannot be read
            raise
        raise DcclipError("a worker process was killed, probably because memory ran out", hint) from None


@contextmanager
def _no_script() -> Iterator[None]:
    """Let processes that start in the block not import the program's script, which then needs no `__main__` guard."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _forks() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()


def _begin_pool_worker() -> None:
    begin_worker()
    keep_pandas_out()


def begin_worker() -> None:
    """Make this process a worker: it ignores signals and ends with the process that it is of."""
    ignore_signals()
    sys.excepthook = lambda *_: None  # called where a tensor is handed over when the command has just ended
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # Of the sockets through which it hands over shared memory; only an orderly exit would remove it.
    if folder := getattr(multiprocessing.current_process(), "_config", {}).get("tempdir"):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
