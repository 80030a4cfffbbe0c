"""Ctrl-C, SIGTERM and SIGHUP: how they end a command, training and worker processes.

A command ends at once, wherever it is: what it keeps is whole on the disk at any moment. Blocks that save something
first are `interruptible` or hold signals back. Slurm, systemd, `timeout` and a terminal send a signal to all processes
of a command at once, torchrun to each of its processes: workers ignore it, and the process that they work for ends.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dcclip_cli.errors import Message, joined

TYPE_CHECKING = False  # typing and threading are imported later: a signal may come at once
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any, Self

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AGAIN_S = 0.05  # after which a signal is sent again
_PROMPT_S = 1.0  # for returning to Python from a library, after which another thread ends the process
_GRACE_S = 10.0  # for saving what is computed
_ALARM_S = 20  # after which the system ends the process, whatever it waits for; a cluster kills 30 s after SIGTERM

_asked: list[int] = []  # the signals that asked this process, a command, to end
_say: Callable[[str], object] = lambda _: None  # noqa: E731
_command: int | None = None  # the process that is a command
_code: int | None = None  # its exit code, once its work is done
_interruptible: list[None] = []  # one for each running block, as in _shielded
_shielded: list[None] = []
_deferred: list[Callable[[], None]] = []  # what a signal that came in a shielded block does at its end
_holding: list[HeldSignals] = []
_kept: list[Callable[[], str]] = []
_kept_before: list[str] = []  # what was kept where the signal ended a block
_kept_last: list[Callable[[], str]] = []  # of the block that ended last
_leaving: list[int] = []  # threads that end the process


def end_on_signals(say: Callable[[str], object]) -> None:
    """Let the first Ctrl-C, SIGTERM or SIGHUP end this process, a command, with 128 + its number.

    `say` gets the line that tells what is kept; it may be called at any moment, so that it must not use a stream.
    """
    global _command, _say
    _command, _say = os.getpid(), say
    sys.unraisablehook = _send_again
    atexit.register(_ignore)  # the first, which runs last
    for number in NUMBERS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup ignores SIGHUP
            signal.signal(number, _end)


def _ignore() -> None:
    """Ignore signals in the very end, where the interpreter would take its handlers back and die of them."""
    for number in NUMBERS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def watch_for_signals() -> None:
    """From now on, end the command also where a signal finds it in the code of a library that takes long."""
    import threading

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _end(number: int, _frame: FrameType | None = None) -> None:
    if os.getpid() != _command:  # forked, and not yet a worker
        os._exit(128 + number)
    _asked.append(number)
    if len(_asked) == 1:
        _unless_shielded(_end_now)


def _unless_shielded(act: Callable[[], None]) -> None:
    if _shielded:
        _deferred[:] = [act]
    else:
        act()


def _end_now() -> None:
    _exit_in_time()
    if _interruptible:
        raise KeyboardInterrupt
    exit_command()


def _watch(reader: int) -> None:
    """End the process a while after a signal that the main thread does not take, being in a library's code."""
    while not (numbers := [number for number in os.read(reader, 64) if number in NUMBERS]):
        pass
    since = time.monotonic()
    while time.monotonic() - since < (_GRACE_S if _asked or _interruptible else _PROMPT_S):
        time.sleep(0.05)
        if _holding or _shielded:
            since = time.monotonic()
    if not _asked:
        _asked.append(numbers[0])
    exit_command()


def _send_again(ignored: sys.UnraisableHookArgs) -> None:
    """Send a signal again that came while an object was finalized, where Python ignores KeyboardInterrupt."""
    import threading

    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(ignored)
    number = _asked.pop() if _asked else signal.SIGTERM
    timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _exit_in_time() -> None:
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_ALARM_S)


def asked_to_end() -> bool:
    """Whether a signal asked this process, a command, to end; an error after that is a consequence."""
    return bool(_asked)


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Let `what` tell what is kept where a signal ends the block: "12 of 40 images are embedded"; empty: nothing.

    It may be called at any moment of the block, or of the rest of a command until another block ends, from any thread.
    """
    _kept.append(what)
    try:
        yield
    except BaseException:
        if asked_to_end():
            _kept_before.insert(0, what())
        raise
    else:
        if _command is not None:
            _kept_last[:] = [what]
    finally:
        _kept.remove(what)


def kept() -> str:
    """What a command that is stopped now has kept."""
    found = [*filter(None, (*(what() for what in _kept), *_kept_before))] or [what() for what in _kept_last]
    return joined(", ", filter(None, found))


def stopped() -> str:
    """What a command that is stopped now has kept, and how to go on."""
    there = kept()
    if not there:
        return Message("nothing was kept this time; run the same command again")
    if "--fresh" in sys.argv:
        return Message("{there}; run the same command again without --fresh to resume from there", there=there)
    return Message("{there}; run the same command again to resume from there", there=there)


def work_is_done(code: int) -> None:
    """From now on a signal only cuts the interpreter's own end short."""
    global _code
    _code = code


def exit_command(code: int | None = None) -> None:
    """Exit now if this process is a command; without a code because a signal asked for it, with a line that says so.

    Its partial files are removed, and its workers end with it. The interpreter's own end is left out: with several
    processes, gloo may hang in it (pytorch issue 56297).
    """
    if os.getpid() != _command:
        return
    _leaving.append(get_ident())
    if len(_leaving) > 1:
        if _leaving[0] == get_ident():  # a handler interrupted it: let it continue
            return
        while True:  # another thread does it
            time.sleep(1)
    _if_imported("dcclip_cli.processes", "end_workers")  # before it is said what is kept
    if code is None:
        code = _code
    if code is None:
        line = stopped()
        _if_imported("dcclip_cli.partials", "remove_own")
        _say(line)
        code = 128 + (_asked[0] if _asked else signal.SIGINT)
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError, ValueError, OSError):  # interrupted in a write; closed; nobody reads it
            stream.flush()
    os._exit(code)


def _if_imported(module: str, function: str) -> Any:
    """The result of a module's function; None if the module is not imported, or is just being imported."""
    call = getattr(sys.modules.get(module), function, None)
    return call() if call else None


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


@contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs in the main thread, a signal raises KeyboardInterrupt, so that it can save what it has."""
    if not _in_main_thread():
        yield
        return
    _interruptible.append(None)
    try:
        yield
    finally:
        _interruptible.pop()


@contextmanager
def shielded() -> Iterator[None]:
    """Let a short block in the main thread end before a signal that comes in it does what it does."""
    if not _in_main_thread():
        yield
        return
    _shielded.append(None)
    try:
        yield
    finally:
        _shielded.pop()
        if _deferred and not _shielded:
            _deferred.pop()()


class HeldSignals:
    """Holds the signals back while its block runs, in whose end KeyboardInterrupt is raised if one came.

    True if one came. Outside of the main thread, signals are left alone.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, Any] = {}
        self._interruptible = False
        self._process = os.getpid()

    def __bool__(self) -> bool:
        return bool(self._came)

    def __enter__(self) -> Self:
        if _in_main_thread():
            heeded = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in heeded}
            _holding.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: TracebackType | None) -> None:
        if self._of_command and (self._came or kind is KeyboardInterrupt):
            # Those that still come, as torchrun sends one more, must not disturb the end.
            _asked.extend([] if _asked else [signal.SIGINT])
            _exit_in_time()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self in _holding:
            _holding.remove(self)
        if self._came and kind is None:
            raise KeyboardInterrupt

    @property
    def _of_command(self) -> bool:
        return self._before.get(signal.SIGTERM) is _end

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
        if os.getpid() != self._process:  # forked, and not yet a worker
            os._exit(128 + number)
        self._came.append(number)
        if self._of_command:
            _asked.append(number)
        _unless_shielded(self._interrupt)

    def _interrupt(self) -> None:
        if self._interruptible:
            raise KeyboardInterrupt


def begin_worker(_number: int = 0) -> None:
    """Make this process a worker, whichever its number: it ignores the signals and exits with its command."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    import threading

    sys.excepthook = _report  # which the thread that hands over shared memory calls
    threading.Thread(target=_exit_with_command, daemon=True).start()


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError):  # the command ended, and does not take what it asked for
        sys.__excepthook__(kind, error, traceback)


def _exit_with_command() -> None:
    import multiprocessing

    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    # Of the sockets through which it hands over shared memory; only an orderly exit would remove it.
    if folder := getattr(multiprocessing.current_process(), "_config", {}).get("tempdir"):
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
