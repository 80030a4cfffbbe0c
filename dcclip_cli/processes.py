"""Worker processes: calls of picklable functions, in processes that end with this one whatever ends it.

A worker's main thread waits at the pipe from its command, which the system closes however that ends, and then exits at
once, also in the middle of a call. `multiprocessing` would leave semaphores behind, and import the caller's script. On
Linux, the first worker imports what calls need, and the others are forked from it.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib import import_module
from queue import SimpleQueue
from typing import IO, Any, NamedTuple, Self, TypeVar

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import keep_pandas_out
from dcclip_cli.partials import remove_own
from dcclip_cli.signals import NUMBERS

Argument = TypeVar("Argument")
Result = TypeVar("Result")


_ENDS_S = 1.0  # a worker, before it is killed
# Those that return freed memory: with Arrow's own, and an arena for each thread, a worker grows with every task.
_ALLOCATORS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
_DIE_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG
_running: list[_Started] = []
_early: list[_Started] = []


class WorkerKilledError(RuntimeError):
    """A worker process was killed, as the system does when memory runs out."""


class _Pipes(NamedTuple):
    """The pipes to and from a worker."""

    calls: IO[bytes]
    answers: IO[bytes]


class _Started(NamedTuple):
    """Processes, of which each ends after those that were forked from it, and the workers in all of them."""

    processes: list[subprocess.Popen[bytes]]
    workers: list[_Pipes]


class Workers:
    """Worker processes, which end when the block does that this is the context of.

    `imports` are modules that calls need.
    """

    def __init__(self, number: int, imports: Sequence[str] = ()) -> None:
        self._started = _early.pop() if _early and len(_early[0].workers) >= number else _start(number, imports)
        self._idle: SimpleQueue[_Pipes] = SimpleQueue()
        self._ended = threading.Event()
        self._number = number
        _running.append(self._started)
        for worker in self._started.workers[:number]:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        _end(self._started)
        if self._started in _running:
            _running.remove(self._started)

    def calls(self, function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> Iterator[Result]:
        """The results of a function of a module, as they come.

        Raises what a call raises, or WorkerKilledError; all workers end then.
        """
        with ThreadPoolExecutor(self._number) as pool:
            try:
                for done in as_completed([pool.submit(self._call, function, argument) for argument in arguments]):
                    yield done.result()
            except BaseException:
                self.__exit__()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _call(self, function: Callable[[Argument], Result], argument: Argument) -> Result:
        worker = self._idle.get()
        try:
            if self._ended.is_set():
                raise WorkerKilledError("the workers have ended")
            result: Result = _ask(worker, pickle.dumps((function, argument)))
            return result
        finally:
            self._idle.put(worker)


def calls(function: Callable[[Argument], Result], arguments: Sequence[Argument], workers: int) -> Iterator[Result]:
    """`Workers.calls` in workers of its own."""
    with Workers(workers) as started:
        yield from started.calls(function, arguments)


def start_early(number: int, imports: Sequence[str]) -> None:
    """Start the workers that the next `Workers` has, up to so many, so that they import what calls need until then.

    Those that are not used end with this process.
    """
    _early.append(_start(number, imports))


def end_workers() -> None:
    """End all workers of this process, which exits now; each removes its partial files."""
    while _early:
        _end(_early.pop(), 0.0)
    for started in list(_running):
        _end(started)


def _end(started: _Started, within_s: float = _ENDS_S) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for worker in started.workers:
        os.dup2(nowhere, worker.calls.fileno())  # its stream may be in use, and closes this number later
    os.close(nowhere)
    until = time.monotonic() + within_s
    while any(process.poll() is None for process in started.processes) and time.monotonic() < until:
        time.sleep(0.01)
    for process in started.processes:
        process.kill()
        process.wait()


def _start(number: int, imports: Sequence[str]) -> _Started:
    forked = number - 1 if sys.platform == "linux" else 0
    pipes = [(*os.pipe(), *os.pipe()) for _ in range(forked)]
    inside = [end for calls_out, _, _, answers_in in pipes for end in (calls_out, answers_in)]
    processes = [_spawn(imports, inside) for _ in range(number - forked)]
    for end in inside:
        os.close(end)
    workers = [_Pipes(process.stdin, process.stdout) for process in processes if process.stdin and process.stdout]
    workers += [
        _Pipes(os.fdopen(calls_in, "wb"), os.fdopen(answers_out, "rb")) for _, calls_in, answers_out, _ in pipes
    ]
    return _Started(processes, workers)


def _spawn(imports: Sequence[str], pipes: Sequence[int]) -> subprocess.Popen[bytes]:
    environment = _ALLOCATORS | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "dcclip_cli.processes", ",".join(imports), *map(str, pipes)]
    given: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "pass_fds": pipes}
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return subprocess.Popen(command, **given)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)  # which the worker inherits, from its first moment on
    try:
        return subprocess.Popen(command, **given)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(worker: _Pipes, call: bytes) -> Any:
    try:
        pickle.dump(call, worker.calls)
        worker.calls.flush()
        result, error = pickle.load(worker.answers)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        raise WorkerKilledError("a worker process was killed") from None
    if error is not None:
        raise error
    return result


def _work(imports: Sequence[str], pipes: list[int]) -> None:
    """Be a worker, after having forked one for each two of the pipes."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    keep_pandas_out()
    for module in imports:
        import_module(module)
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks where BLAS has threads
    forked: list[int] = []
    for at in range(0, len(pipes), 2):
        if not (child := os.fork()):
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            os.dup2(pipes[at], 0)
            os.dup2(pipes[at + 1], 1)
            forked.clear()
            break
        forked.append(child)
    for end in pipes:
        os.close(end)
    _serve(forked)


def _serve(forked: Sequence[int]) -> None:
    """Make the calls that come on standard input, and answer them where standard output was, until that closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    pool = ThreadPoolExecutor(1)
    while True:
        try:
            call = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):
            remove_own()
            for child in forked:
                os.waitpid(child, 0)
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
    _work(list(filter(None, sys.argv[1].split(","))), list(map(int, sys.argv[2:])))
