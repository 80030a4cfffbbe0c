"""Terminal output: data on stdout, messages and progress on stderr, exceptions as `error:` and `hint:` lines."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from dcclip_cli.errors import DcclipError
from dcclip_cli.machine import is_first_process
from dcclip_cli.progress import Progress, Silent, stderr_progress
from dcclip_cli.signals import asked_to_end, exit_command
from dcclip_cli.versions import EXTRAS

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")
_NAME_WIDTH = 17  # of a field's name, with blanks on both sides

# System errors that the user can fix, and how.
_SYSTEM = {
    errno.ENOSPC: "free some disk space, then run the same command again",
    errno.EACCES: "write somewhere else with --out, or fix the permissions",
    errno.EROFS: "write somewhere else with --out",
}

_RED, _YELLOW, _CYAN = 31, 33, 36  # ANSI colours


class CommandGroup(typer.core.TyperGroup):
    """Commands whose user errors are printed as `error:` and `hint:` lines; any other exception keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DcclipError as error:
            mistake = error
        except KeyboardInterrupt:
            _stopped()
        except (RuntimeError, OSError, EOFError, ImportError) as error:
            if asked_to_end():  # the processes that it works with end as well, which it may see as an error
                _stopped()
            mistake = _users_mistake(error)
        for line in mistake.what.splitlines():
            error_line(line)
        _label("hint:  ", mistake.hint, _CYAN)
        exit_command(1)
        raise typer.Exit(1)


def _stopped() -> NoReturn:
    _label("stopped: ", "run the same command again to resume from the last saved state", _YELLOW)
    exit_command()
    raise typer.Exit(130) from None


def _users_mistake(error: Exception) -> DcclipError:
    """What the user can fix about an error; raises it again if there is nothing."""
    if isinstance(error, ModuleNotFoundError):
        return _not_installed(error)
    if isinstance(error, OSError) and error.errno in _SYSTEM:
        return DcclipError(f"{error.filename}: {error.strerror}", _SYSTEM[error.errno])
    raise error


def _not_installed(error: ModuleNotFoundError) -> DcclipError:
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            what = f"this needs the package {package}, which is not installed"
            return DcclipError(what, f"pip install 'dcclip[{extra}]'")
    raise error


def error_line(line: str) -> None:
    """Print `error: LINE` on stderr."""
    _label("error: ", line, _RED)


def warning_line(line: str) -> None:
    """Print `warning: LINE` on stderr, once however many processes say it."""
    if is_first_process():
        _label("warning: ", line, _YELLOW)


def _label(label: str, line: str, colour: int) -> None:
    """Print a line on stderr, the label coloured in a terminal, control characters escaped."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    if sys.stderr.isatty():
        label = f"\033[1;{colour}m{label}\033[0m"
    sys.stderr.write(f"{label}{line}\n")


def talk(quiet: bool = False, verbose: bool = False) -> Progress:
    """Progress on stderr, silent if `quiet` and in all processes of a run but the first; library logs if `verbose`."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr, force=True)
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    silent = quiet or not is_first_process()
    if silent or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of downloads would flood a log
    return Silent() if silent else stderr_progress()


def has_screen() -> bool:
    """Whether a browser can be opened for the user: a terminal with a display, not ssh, not a container."""
    drawn = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return drawn and sys.stdout.isatty()


def counted(talk: Progress, name: str, items: Iterable[Item], total: int, at_once: bool = False) -> Iterator[Item]:
    """The items, with progress; without a bar if each item is printed `at_once` on the same terminal."""
    with (Silent() if at_once and sys.stdout.isatty() else talk).task(name, total) as task:
        for item in items:
            yield item
            task.advance()


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout, columns of numbers aligned right."""
    from rich import box
    from rich.table import Table

    console = _stdout()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    lines = list(rows)
    for number, column in enumerate(columns):
        numbers = all(line[number][:1].isdecimal() for line in lines if line[number])
        table.add_column(column, justify="right" if numbers and number else "left", overflow="fold", no_wrap=not number)
    for row in lines:
        table.add_row(*row)
    console.print(title, style="bold", markup=False, soft_wrap=True)  # a table's own title wraps at the table's width
    console.print(table)


def _stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)


def show_fields(title: str, fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values on stdout under a title; the values of all such blocks start in one column."""
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
    """Print the path of a result on stdout, once however many processes made it."""
    if is_first_process():
        show(str(path))
