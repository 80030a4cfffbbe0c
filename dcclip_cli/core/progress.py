"""Progress of long-running work: the protocol that work reports to, and bars, plain lines or
silence to show it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from dcclip_cli.core.errors import Message, joined, translated
from dcclip_cli.core.machine import is_first_process
from dcclip_cli.core.text import filled

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

# when plain lines report on a task
_FIRST_LINE_S = 2.0
_NEXT_LINES_S = 15.0
_BRIEF_S = 2.0  # a task that ends sooner leaves no bar and no line


_shown = False  # whether this module has shown anything on stderr


def say_loading(name: str, after_s: float) -> threading.Timer:
    """Show on stderr that `name` loads, unless something else is shown within `after_s`; returns
    what cancels that.
    """

    def say() -> None:
        if not _shown:
            _to_stderr(Message("{}: loading", name))

    timer = threading.Timer(after_s, say)
    timer.daemon = True
    timer.start()
    return timer


class Task(Protocol):
    """One running piece of work."""

    def advance(self, steps: int = 1, **metrics: float) -> None:
        """Count `steps` more as done and show `metrics` (loss, images/s, ...) next to the bar."""


class Progress(Protocol):
    """Shows tasks and messages: bars in a terminal, plain lines, or nothing."""

    def say(self, line: str) -> None:
        """Show a message of one line."""

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        """Show a task of `total` steps of which `done` are finished already."""
        yield from ()


class Silent:
    """A Progress that shows nothing: the default of every function that takes one."""

    def say(self, line: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        yield self

    def advance(self, steps: int = 1, **metrics: float) -> None:
        pass


def stderr_progress() -> Progress:
    """Bars where stderr is a terminal, else plain lines."""
    if not sys.stderr.isatty():
        return Lines()
    from rich.console import Console

    return TerminalBars(Console(stderr=True, highlight=False))


ProgressChoice = bool | Callable[[str], object] | Progress


def progress_for(choice: ProgressChoice) -> Progress:
    """True: bars or lines on stderr, by the first process only; False: silence; a function gets
    lines; a Progress.
    """
    if not is_first_process():
        return Silent()
    if isinstance(choice, bool):
        return stderr_progress() if choice else Silent()
    return Lines(choice) if callable(choice) else choice


class Lines:
    """Progress as plain lines, a few per minute, handed to `write` (by default on stderr)."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or _to_stderr

    def say(self, line: str) -> None:
        self._write(line)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        running = _LineTask(self.say, name, total, done)
        yield running
        if time.monotonic() - running.begin >= _BRIEF_S:
            running.report(last=True)


def _note_shown() -> None:
    global _shown
    _shown = True


def _to_stderr(line: str) -> None:
    _note_shown()
    sys.stderr.write(translated(line) + "\n")
    sys.stderr.flush()


class _LineTask:
    def __init__(self, say: Callable[[str], object], name: str, total: int, done: int) -> None:
        self._say = say
        self._name = name
        self._total = total
        self._done = done
        self._first = done
        self.begin = time.monotonic()
        self._reported = self.begin, done
        self._next = self.begin + _FIRST_LINE_S
        self._metrics = ""

    def advance(self, steps: int = 1, **metrics: float) -> None:
        if (
            self._done == self._first
        ):  # what came before may have been other work, such as loading a model
            self._reported = time.monotonic(), self._done + steps
        self._done += steps
        self._metrics = _metrics(metrics) or self._metrics
        if time.monotonic() >= self._next and self._done < self._total:
            self.report()
            self._next = time.monotonic() + _NEXT_LINES_S

    def report(self, last: bool = False) -> None:
        # The time left follows from the rate since the last line: a task may begin with work of
        # another kind.
        now = time.monotonic()
        (since, before) = (self.begin, self._first) if last else self._reported
        rate = (self._done - before) / (now - since) if now > since else 0.0
        speed = f"{rate:.1f}/s" if rate or last else ""
        timing = ""
        self._reported = (now, self._done)
        if last:
            timing = Message("took {}", clock(now - since))
        elif rate:
            timing = Message("{} left", clock((self._total - self._done) / rate))
        done = Message("{} {}/{}", self._name, self._done, self._total)
        self._say(joined("  ", filter(None, (done, speed, timing, self._metrics))))


class TerminalBars:
    """Progress as bars with rate and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = _bars(console)

    def say(self, line: str) -> None:
        _note_shown()
        self._console.print(
            filled(translated(line), self._console.width), markup=False, soft_wrap=True
        )

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        _note_shown()
        bars = self._bars
        begin = time.monotonic()
        outermost = not bars.live.is_started
        if outermost:
            bars.start()
        number = bars.add_task(translated(name), total=total, completed=done, metrics="")
        try:
            yield _BarTask(bars, number)
        finally:
            if time.monotonic() - begin < _BRIEF_S:
                bars.remove_task(number)
            if outermost:
                bars.live.transient = not bars.tasks
                bars.stop()
                # so that the next task does not draw these again
                self._bars = _bars(self._console)


class _BarTask:
    def __init__(self, bars: Bars, number: Any) -> None:
        self._bars = bars
        self._number = number

    def advance(self, steps: int = 1, **metrics: float) -> None:
        shown: dict[str, Any] = {"metrics": _metrics(metrics)} if metrics else {}
        self._bars.update(self._number, advance=steps, **shown)


def _bars(console: Console) -> Bars:
    from rich import progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f}/s" if speed else "", style="magenta")

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        progress.TextColumn("{task.fields[metrics]}", style="dim"),
        console=console,
    )


def _metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def clock(seconds: float) -> str:
    """A duration or a time: 1:23, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
