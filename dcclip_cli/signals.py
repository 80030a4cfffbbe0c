"""Ctrl-C and SIGTERM: how they end a command, training and worker processes.

Slurm, systemd, `timeout` and a terminal send a signal to all processes of a command at once, torchrun to each of its
processes: workers ignore it, and the process that they work for ends in order.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S = 0.05  # after which a signal is sent again
_GRACE_S = 20  # for removing temporary files; a cluster kills 30 s after SIGTERM
_asked: list[int] = []  # the signals that asked this process, a command, to end


def end_on_signals() -> None:
    """The first Ctrl-C or SIGTERM ends this process, a command, by KeyboardInterrupt; it also exits if that fails."""
    sys.unraisablehook = _send_again
    for number in _NUMBERS:
        signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    if len(_asked) == 1:
        _exit_in_time()
        raise KeyboardInterrupt


def _send_again(ignored: sys.UnraisableHookArgs) -> None:
    """Send a signal again that came while an object was finalized, where Python ignores KeyboardInterrupt."""
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(ignored)
    number = _asked.pop() if _asked else signal.SIGTERM
    timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _exit_in_time() -> None:
    """Let the system end this process soon, whatever it waits for by then."""
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_GRACE_S)


def asked_to_end() -> bool:
    """Whether a signal asked this process, a command, to end; an error after that is a consequence."""
    return bool(_asked)


def exit_command(code: int | None = None) -> None:
    """Exit now if this process is a command, with 128 + the number of the signal that ends it where no code is given.

    The interpreter's own end is left out: with several processes, gloo may hang in it (pytorch issue 56297).
    """
    if signal.getsignal(signal.SIGTERM) is not _end:
        return
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + max(_asked, default=signal.SIGINT) if code is None else code)


class HeldSignals:
    """Holds Ctrl-C and SIGTERM back while its block runs, in whose end KeyboardInterrupt is raised if one came.

    True if one came. Outside of the main thread, signals are left alone.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, Any] = {}
        self._interruptible = False

    def __bool__(self) -> bool:
        return bool(self._came)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _NUMBERS}
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        if self._before.get(signal.SIGTERM) is _end and (self._came or kind is KeyboardInterrupt):
            # Those that still come, as torchrun sends one more, must not disturb the end.
            _asked.extend(self._came or [signal.SIGINT])
            _exit_in_time()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._came and kind is None:
            raise KeyboardInterrupt

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While the block runs, the signals raise KeyboardInterrupt at once; so does one that came before."""
        self._interruptible = True
        try:
            if self._came:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)
        if self._interruptible:
            raise KeyboardInterrupt


def begin_worker(_number: int = 0) -> None:
    """Make this process a worker, whichever its number: it ignores Ctrl-C and SIGTERM and exits with its command."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _report  # which the thread that hands over shared memory calls
    threading.Thread(target=_exit_with_command, daemon=True).start()


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError):  # the command ended, and does not take what it asked for
        sys.__excepthook__(kind, error, traceback)


def _exit_with_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)
