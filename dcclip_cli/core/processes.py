"""Signals, which end a command by an exception, or training after its step; worker processes,
which end with it.

Slurm, systemd, `timeout` and a terminal send a signal to all processes of a command at once, and
torchrun sends its processes another one. So workers ignore signals, and those that come within a
second are one request.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.files import remove
from dcclip_cli.core.machine import can_fork, keep_pandas_out

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from types import FrameType

Argument = TypeVar("Argument")
Result = TypeVar("Result")

NUMBERS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
AGAIN = Message("run the same command again")
_AGAIN_S = 1.0  # a signal that comes so long after the first one ends the process at once
_DIE_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG
_ENVIRONMENT = {
    # Allocators that return freed memory: with Arrow's own, and an arena for each thread, a worker
    # grows with tasks.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # of what it removes after a kill
}
_SAFE_PATH = {
    "PYTHONSAFEPATH": "1"
}  # multiprocessing starts `python -c`, which imports from the current folder first

_process = 0  # the one that handles signals: neither a worker nor forked a moment ago
_asked = 0
_asked_at = 0.0
_noting = False


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end. A message, if there is one, says what is saved."""


def end_on_signals() -> dict[int, Any]:
    """From now on, a signal raises Stopped in the main thread, unless it is only noted; returns
    the handlers before.
    """
    global _process
    _process = os.getpid()
    # nohup lets a command ignore SIGHUP.
    heeded = [
        sent
        for sent in NUMBERS
        if sent == signal.SIGINT or signal.getsignal(sent) is not signal.SIG_IGN
    ]
    return {number: signal.signal(number, _handle) for number in heeded}


def _handle(number: int, _frame: FrameType | None) -> None:
    global _asked, _asked_at
    if os.getpid() != _process or (_asked and time.monotonic() - _asked_at > _AGAIN_S):
        os._exit(128 + number)
    if not _asked:
        _asked = number
        _asked_at = time.monotonic()
        _stop_if_asked()


def asked() -> int:
    """The signal that asked this process to end, 0 if none did; an error after it is a
    consequence.
    """
    return _asked


def _stop_if_asked() -> None:
    if _asked and not _noting:
        raise Stopped


@contextmanager
def noted(noting: bool = True) -> Iterator[None]:
    """While the block runs, signals are noted, to raise Stopped at its end; or at once, if not
    `noting` inside it.
    """
    global _noting
    before = _noting
    _noting = noting
    try:
        _stop_if_asked()
        yield
    finally:
        _noting = before
    _stop_if_asked()


@contextmanager
def handled() -> Iterator[None]:
    """While the block runs, signals are handled as in a command, in the main thread of whatever
    program.
    """
    global _asked
    if (
        signal.getsignal(signal.SIGINT) is _handle
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    before = end_on_signals()
    try:
        yield
    finally:
        _asked = 0
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore signals from now on: in a worker, and where the work is done."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def end_with_launcher() -> None:
    """On Linux, let this process get SIGTERM when the command that started it is killed."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def preload(imports: Sequence[str]) -> bool:
    """Start the process that workers are forked from, which imports what calls need; False where
    there is none.
    """
    if not can_fork():
        return False
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload([__name__, *imports])
    with _environment(_ENVIRONMENT | _SAFE_PATH):
        resource_tracker.ensure_running()  # which unblocks signals
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, NUMBERS
        )  # in workers too, from their first moment on
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return True


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Processes that the block starts have these environment variables, where the user has not set
    them.
    """
    added = settings.keys() - os.environ.keys()
    os.environ.update((name, settings[name]) for name in added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def process_pool(
    number: int, imports: Sequence[str] = (), fresh: bool = False, folders: Iterable[Path] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Up to so many worker processes, which end with the block; an exception kills them.

    They have the modules `imports`, or are `fresh`: with nothing in their memory but what a call
    needs. What killed ones were writing in `folders` is removed.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context(
        "forkserver" if not fresh and preload(imports) else "spawn"
    )
    with ProcessPoolExecutor(
        number, context, _begin_pool_worker, (dict(os.environ), fresh)
    ) as pool:
        try:
            yield pool
        except BaseException:
            for process in list(
                pool._processes.values()
            ):  # pool.kill_workers() from Python 3.14 on
                process.kill()
                process.join()
                for folder in folders:
                    for path in folder.glob(f".*.{process.pid}-*.partial"):
                        remove(path)
            raise


def calls(
    pool: ProcessPoolExecutor,
    function: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    hint: str,
) -> Iterator[Result]:
    """The results of a function of a module, as they come. Raises its error, or DcclipError for a
    killed worker.
    """
    from concurrent.futures import as_completed
    from concurrent.futures.process import BrokenProcessPool

    try:
        # Processes that start here do not import the program's script, which then needs no
        # `__main__` guard.
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            with _environment(_SAFE_PATH):
                futures = [pool.submit(function, argument) for argument in arguments]
        finally:
            sys.modules["__main__"] = script
        for done in as_completed(futures):
            yield done.result()
    except BrokenProcessPool as error:
        if error.__cause__:  # what it sent cannot be read
            raise
        raise DcclipError(
            "a worker process was killed, probably because the system ran out of memory", hint
        ) from None


def _begin_pool_worker(environment: Mapping[str, str], fresh: bool) -> None:
    begin_worker()
    os.environ.update(
        environment
    )  # which may have changed since the process that this is forked from began
    if not fresh:
        keep_pandas_out()


def begin_worker() -> None:
    """Make this process a worker: it ignores signals and ends with the process that it is of."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        if (
            parent.name == "MainProcess"
        ):  # a worker shares the folder of the process that it works for
            remove_sockets()
        os._exit(1)

    ignore_signals()
    sys.excepthook = lambda *_: (
        None
    )  # called where a tensor is handed over when the command has just ended
    threading.Thread(target=end_with_parent, daemon=True).start()


def remove_sockets() -> None:
    """Remove the folder of this process's sockets to workers, which otherwise only an orderly exit
    does.
    """
    import multiprocessing

    if folder := getattr(multiprocessing.current_process(), "_config", {}).get("tempdir"):
        shutil.rmtree(folder, ignore_errors=True)
