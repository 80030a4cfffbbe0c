"""Ctrl-C, SIGTERM and SIGHUP: a command ends by an exception where it is; training finishes its step first.

Slurm, systemd, `timeout` and a terminal send a signal to all processes of a command at once, and torchrun sends its
processes another one. So workers ignore signals, and those that come within a second are one request.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dcclip_cli.errors import Message

if TYPE_CHECKING:
    from types import FrameType

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AGAIN = Message("run the same command again")
_AGAIN_S = 1.0  # a signal that comes so long after the first one ends the process at once
_DIE_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG

_process = 0  # the one that handles signals: neither a worker nor forked a moment ago
_asked, _asked_at = 0, 0.0
_noting = False


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end. A message, if there is one, says what is saved."""


def end_on_signals() -> dict[int, Any]:
    """From now on, a signal raises Stopped in the main thread, unless it is only noted; returns the handlers before."""
    global _process
    _process = os.getpid()
    # nohup lets a command ignore SIGHUP.
    heeded = [one for one in NUMBERS if one == signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN]
    return {number: signal.signal(number, _handle) for number in heeded}


def _handle(number: int, _frame: FrameType | None) -> None:
    global _asked, _asked_at
    if os.getpid() != _process or (_asked and time.monotonic() - _asked_at > _AGAIN_S):
        os._exit(128 + number)
    if not _asked:
        _asked, _asked_at = number, time.monotonic()
        _stop_if_asked()


def asked() -> int:
    """The signal that asked this process to end, 0 if none did; an error after it is a consequence."""
    return _asked


def _stop_if_asked() -> None:
    if _asked and not _noting:
        raise Stopped


@contextmanager
def noted(noting: bool = True) -> Iterator[None]:
    """While the block runs, signals are only noted, for `asked`; at its end, Stopped is raised if one came.

    Not `noting`, inside of such a block: they raise Stopped at once, as does one that came before.
    """
    global _noting
    before, _noting = _noting, noting
    try:
        _stop_if_asked()
        yield
    finally:
        _noting = before
    _stop_if_asked()


@contextmanager
def handled() -> Iterator[None]:
    """While the block runs, signals are handled as in a command, in the main thread of whatever program."""
    global _asked
    if signal.getsignal(signal.SIGINT) is _handle or threading.current_thread() is not threading.main_thread():
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
