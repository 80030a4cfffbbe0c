"""What goes to the terminal: talk and progress on stderr, data on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dcclip_cli.progress import Progress, Silent, Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

Item = TypeVar("Item")
_FIRST_LINE_S, _NEXT_LINES_S = 2.0, 15.0  # when plain lines report on a task
_NAME_WIDTH = 17  # of a field's name, with blanks on both sides
_BRIEF_S = 2.0  # a bar that was finished sooner is taken away


def talk(quiet: bool = False, verbose: bool = False) -> Progress:
    """Where a command's talk goes: bars on a terminal, plain lines elsewhere, nowhere if `quiet`.

    The libraries below are heard only if `verbose`. Of several processes of one run, only the first one talks.
    """
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr, force=True)
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    silent = quiet or not is_first_process()
    if silent or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they show downloads; lines of a log they'd flood
        return Silent() if silent else Lines()
    from rich.console import Console

    return TerminalBars(Console(stderr=True, highlight=False))


def has_screen() -> bool:
    """Whether someone sits at this terminal who could look into a browser: not over ssh, not in a container."""
    drawn = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return drawn and sys.stdout.isatty()


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the one that speaks for all (torchrun, accelerate launch)."""
    return os.environ.get("RANK", "0") == "0"


class Lines:
    """Progress as plain lines on stderr, a few per minute."""

    def say(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        running = _LineTask(self, name, total, done)
        yield running
        running.report(last=True)


class _LineTask:
    def __init__(self, lines: Lines, name: str, total: int, done: int) -> None:
        self._lines, self._name, self._total, self._done, self._first = lines, name, total, done, done
        self._begin = time.monotonic()
        self._next = self._begin + _FIRST_LINE_S
        self._figures = ""

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._done += steps
        self._figures = _figures(figures) or self._figures
        if time.monotonic() >= self._next and self._done < self._total:
            self.report()
            self._next = time.monotonic() + _NEXT_LINES_S

    def report(self, last: bool = False) -> None:
        seconds = time.monotonic() - self._begin
        if last and seconds < _BRIEF_S:
            return
        rate = (self._done - self._first) / seconds if seconds else 0.0
        left = f"{_clock((self._total - self._done) / rate)} left" if rate and not last else f"took {_clock(seconds)}"
        parts = [f"{self._name} {self._done}/{self._total}", f"{rate:.1f}/s", left, self._figures]
        self._lines.say("  ".join(part for part in parts if part))


class TerminalBars:
    """Progress as bars with rate and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        outermost = self._bars is None
        bars = self._bars or _bars(self._console)
        if outermost:
            self._bars = bars
            bars.start()
        begin = time.monotonic()
        number = bars.add_task(name, total=total, completed=done, figures="")
        try:
            yield _BarTask(bars, number)
        finally:
            if time.monotonic() - begin < _BRIEF_S:
                bars.remove_task(number)
            if outermost:
                bars.live.transient = not bars.tasks
                bars.stop()
                self._bars = None


class _BarTask:
    def __init__(self, bars: Bars, number: Any) -> None:
        self._bars, self._number = bars, number

    def advance(self, steps: int = 1, **figures: float) -> None:
        shown: dict[str, Any] = {"figures": _figures(figures)} if figures else {}
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
        progress.TextColumn("{task.fields[figures]}", style="dim"),
        console=console,
    )


def counted(
    talk: Progress, name: str, items: Iterable[Item], total: int, shown_at_once: bool = False
) -> Iterator[Item]:
    """The items, counted on a bar; on none where each is shown at once on the same terminal, which would tear it."""
    if shown_at_once and sys.stdout.isatty():
        talk = Silent()
    with talk.task(name, total) as task:
        for item in items:
            yield item
            task.advance()


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout, columns of figures to the right."""
    from rich import box
    from rich.table import Table

    console = _stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    lines = list(rows)
    for number, column in enumerate(columns):
        figures = all(line[number][:1].isdecimal() for line in lines if line[number])
        table.add_column(column, justify="right" if figures and number else "left", overflow="fold", no_wrap=not number)
    for row in lines:
        table.add_row(*row)
    console.print(title, style="bold", markup=False, soft_wrap=True)  # a table's own title wraps at the table's width
    console.print(table)


def _stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)


def show_fields(title: str, fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values on stdout under a title; the values of several such blocks stand in one column."""
    from rich.cells import set_cell_size
    from rich.text import Text

    console = _stdout()
    console.print(title, style="bold", markup=False, soft_wrap=True)
    for name, value in fields:
        for number, line in enumerate(Text(value).wrap(console, console.width - _NAME_WIDTH, overflow="fold")):
            label = set_cell_size("" if number else f"  {name}", _NAME_WIDTH)
            console.print(label + line.plain.rstrip(), markup=False, emoji=False)


def show_json(value: Any) -> None:
    """Print a value as JSON on stdout, Chinese readable."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def show(line: str) -> None:
    """Print one line of data on stdout."""
    sys.stdout.write(line + "\n")


def show_path(path: Path) -> None:
    """Print where a result lies, on stdout, once however many processes made it."""
    if is_first_process():
        show(str(path))


def _figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
