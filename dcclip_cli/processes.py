"""Worker processes: calls of picklable functions, in processes that end with this one whatever ends it.

A worker's main thread waits at the pipe from its command, which the system closes however that ends, and then exits at
once, also in the middle of a call or of imports. `multiprocessing` would finish its imports first, leave semaphores
behind, and import the caller's script.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import IO, Any, Self, TypeVar

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import keep_pandas_out
from dcclip_cli.partials import remove_own
from dcclip_cli.signals import NUMBERS

Argument = TypeVar("Argument")
Result = TypeVar("Result")


_ENDS_S = 1.0  # a worker, before it is killed
# Those that return freed memory: with Arrow's own, and an arena for each thread, a worker grows with every task.
_ALLOCATORS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
_running: list[subprocess.Popen[bytes]] = []


class WorkerKilledError(RuntimeError):
    """A worker process was killed, as the system does when memory runs out."""


class Workers:
    """Worker processes, which end when the block does that this is the context of."""

    def __init__(self, number: int) -> None:
        self._processes = [_start() for _ in range(number)]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._ended = threading.Event()
        _running.extend(self._processes)
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        _end(self._processes)
        for process in self._processes:
            if process in _running:
                _running.remove(process)

    def calls(self, function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> Iterator[Result]:
        """The results of a function of a module, as they come.

        Raises what a call raises, or WorkerKilledError; all workers end then.
        """
        with ThreadPoolExecutor(len(self._processes)) as pool:
            try:
                for done in as_completed([pool.submit(self._call, function, argument) for argument in arguments]):
                    yield done.result()
            except BaseException:
                self.__exit__()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _call(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        process = self._idle.get()
        try:
            if self._ended.is_set():
                raise WorkerKilledError("the workers have ended")
            result: Result = _ask(process, pickle.dumps((function, argument)))
            return result
        finally:
            self._idle.put(process)


def calls(function: Callable[[Argument], Result], arguments: Sequence[Argument], workers: int) -> Iterator[Result]:
    """`Workers.calls` in workers of its own."""
    with Workers(workers) as started:
        yield from started.calls(function, arguments)


def end_workers() -> None:
    """End all workers of this process, which exits now; each removes its partial files."""
    _end(list(_running))


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for process in processes:
        assert process.stdin
        os.dup2(nowhere, process.stdin.fileno())  # its stream may be in use, and closes this number later
    os.close(nowhere)
    until = time.monotonic() + _ENDS_S
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()


def _start() -> subprocess.Popen[bytes]:
    environment = _ALLOCATORS | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "dcclip_cli.processes"]
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)  # which the worker inherits, from its first moment on
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(process: subprocess.Popen[bytes], call: bytes) -> Any:
    assert process.stdin and process.stdout
    try:
        pickle.dump(call, process.stdin)
        process.stdin.flush()
        result, error = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        raise WorkerKilledError("a worker process was killed") from None
    if error is not None:
        raise error
    return result


def _serve() -> None:
    """Make the calls that come on standard input, and answer them where standard output was, until that closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    pool = ThreadPoolExecutor(1)
    pool.submit(keep_pandas_out)
    while True:
        try:
            call = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):
            remove_own()
            os._exit(0)
        pool.submit(_call, call).add_done_callback(lambda done: _answer(done, answers))


def _call(call: bytes) -> Any:
    function, argument = pickle.loads(call)
    return function(argument)


def _answer(done: Future[Any], answers: IO[bytes]) -> None:
    error = done.exception()
    if error is not None and not isinstance(error, DcclipError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        content = pickle.dumps((None if error else done.result(), error))
        pickle.loads(content)
    except (pickle.PicklingError, TypeError, AttributeError):  # an error of a library that cannot be pickled
        content = pickle.dumps((None, RuntimeError("".join(traceback.format_exception(error)))))
    try:
        answers.write(content)
        answers.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    _serve()
