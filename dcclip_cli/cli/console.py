"""Terminal output: data on stdout, messages and progress on stderr, exceptions as `error:` and
`hint:` lines.
"""

import json
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer

from dcclip_cli.core.errors import AgainError, DcclipError, Message, language, translated
from dcclip_cli.core.files import atomic_write, cache_folder
from dcclip_cli.core.machine import ERROR_FILE, is_first_process, is_launched
from dcclip_cli.core.processes import AGAIN, asked, ignore_signals
from dcclip_cli.core.progress import Progress, Silent, stderr_progress
from dcclip_cli.core.text import filled, printable, rows
from dcclip_cli.core.versions import extras

Item = TypeVar("Item")
_STDOUT = "stdout"
_USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[
    1
]  # the base of all usage errors, which Typer does not export
_OF_TYPER = "Value error, "  # before what its parsers say
_WIDTH = 200  # of output that is no terminal
_NAME_WIDTH = 17  # of a field's name, with blanks on both sides

_MOST_LINES = 50  # of one error
_NUMBER = re.compile("[-+]?[0-9]")
# ANSI colours
_RED = 31
_YELLOW = 33
_CYAN = 36


class CommandGroup(typer.core.TyperGroup):
    """Commands whose user errors are printed as `error:` and `hint:` lines; any other exception
    keeps its traceback.
    """

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        if language() == "zh":
            from dcclip_cli.cli.chinese import speak_chinese

            speak_chinese(self)
        else:
            for command in self.commands.values():
                command.help = re.sub(
                    r"(?<![.:\n])\n(?!\n)", " ", command.help or ""
                )  # Typer keeps line breaks
        with _usage_errors():
            return super().make_context(*arguments, **options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        for before, argument in pairwise(args):
            if argument == "" or (argument.startswith("--") and argument.endswith("=")):
                name = argument.rstrip("=") or (
                    before if before.startswith("-") else Message("an argument")
                )
                _fail(
                    DcclipError(
                        "{} is empty", "set the shell variable that it comes from, or omit it", name
                    )
                )
        joined: list[
            str
        ] = []  # `--seeds 0 1 2`, of which a parser takes one value, as `--seeds 0,1,2`
        for argument in args:
            if (
                argument.isdecimal()
                and joined[-2:-1] == ["--seeds"]
                and joined[-1].replace(",", "").isdecimal()
            ):
                joined[-1] += f",{argument}"
            else:
                joined.append(argument)
        return super().resolve_command(ctx, joined)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _usage_errors(ctx):
                try:
                    return super().invoke(ctx)
                finally:
                    flush()
        except BaseException as error:
            if is_launched():
                # of the launcher, once another process has failed: destructors would print them
                ignore_signals()
            if (
                isinstance(error, KeyboardInterrupt) or asked()
            ):  # any other error is then a consequence
                if is_first_process() and not is_launched():
                    saved = isinstance(error, KeyboardInterrupt) and error.args
                    _label(Message("stopped: "), saved[0] if saved else AGAIN, _YELLOW)
                raise typer.Exit(128 + (asked() or signal.SIGINT)) from None
            if isinstance(error, DcclipError):
                mistake = error
            elif isinstance(error, OSError) and error.filename == _STDOUT:
                os.dup2(
                    os.open(os.devnull, os.O_WRONLY), 1
                )  # so that the interpreter does not fail to write it again
                if isinstance(error, BrokenPipeError):  # nobody reads it any more
                    raise
                hint = Message("redirect the output to a file on another disk: > FILE")
                mistake = DcclipError("cannot write to stdout: {}", hint, error.strerror)
            elif isinstance(error, EOFError):  # which click would take for the user's wish to stop
                raise RuntimeError("a file or the output of a process ended too early") from error
            else:
                from dcclip_cli.cli.system_errors import explained

                explanation = explained(error)
                if isinstance(error, ModuleNotFoundError):
                    package = (error.name or "").partition(".")[0]
                    problem = Message(
                        "the command needs the package {}, which is not installed", package
                    )
                    names = [extra for extra, packages in extras().items() if package in packages]
                    explanation = (
                        DcclipError(problem, Message("pip install 'dcclip[{}]'", names[0]))
                        if names
                        else None
                    )
                if explanation is None and is_launched():
                    explanation = DcclipError("".join(traceback.format_exception(error)), "")
                if explanation is None:
                    raise
                mistake = explanation
        _fail(mistake)


@contextmanager
def _usage_errors(context: Any = None) -> Iterator[None]:
    """Let usage errors of the block name the command's help, in the user's language."""
    try:
        yield
    except _USAGE_ERROR as error:
        if (
            error.ctx is None and context and (name := context.invoked_subcommand)
        ):  # as of the parser's own errors
            error.ctx = type(context)(context.command.get_command(context, name), context, name)
        if error.message.startswith(_OF_TYPER):
            error.message = error.message.removeprefix(_OF_TYPER)
        if language() == "zh":
            from dcclip_cli.cli.chinese import usage_error

            usage_error(error)
        raise


def _fail(mistake: DcclipError) -> NoReturn:
    """Print an error with its hint, or report both where another command started this process, and
    exit with 1.
    """
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE" if is_launched() else ERROR_FILE):
        content = {
            "message": translated(mistake.what),
            "hint": translated(mistake.hint),
            "time": time.time(),
        }
        Path(report).write_text(
            json.dumps(content | {"again": isinstance(mistake, AgainError)}), "utf-8"
        )
    if is_launched():
        raise typer.Exit(1)
    lines = translated(mistake.what).split("\n")
    for line in lines[:_MOST_LINES]:
        error_line(line)
    if len(lines) > _MOST_LINES:
        error_line(Message("and {:,} more errors of this kind", len(lines) - _MOST_LINES))
    hint_line(mistake.hint)
    raise typer.Exit(1)


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, Chinese readable where stdout can encode it, control characters as
    `\\u001b`.
    """
    ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    return re.sub(
        "[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
        lambda match: f"\\u{ord(match[0]):04x}",
        text,
    )


def error_line(line: str) -> None:
    _label(Message("error: "), line, _RED)


def warning_line(line: str) -> None:
    """Print `warning: LINE` on stderr, once however many processes say it."""
    if is_first_process():
        _label(Message("warning: "), line, _YELLOW)


def hint_line(line: str) -> None:
    _label(Message("hint:  "), line, _CYAN)


class ErrorLines:
    """Errors of single files: an `error:` line for each, when it is met, and in the end one
    `hint:` line per hint.

    Errors of files in folders among the user's `arguments` are in a file, and counted in one
    `warning:` line.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self._hints: dict[str, list[str]] = {}  # with the names that each is for
        self._named = set(arguments)
        self._folders = [folder for folder in arguments if os.path.isdir(folder)]
        self._listed: list[str] = []

    def add(self, name: str, error: DcclipError) -> None:
        if name not in self._named and any(map(Path(name).is_relative_to, self._folders)):
            self._listed.append(printable(translated(error.what)))
            return
        error_line(error.what)
        hint = translated(error.hint)
        hint = f"{hint.removesuffix(name)}FILE" if hint.endswith(f" {name}") else hint
        self._hints.setdefault(hint, []).append(name)

    def end(self, count: int | None = None) -> None:
        """Print the hints, and exit with 1 if there were `error:` lines, or errors of all of
        `count` files.
        """
        if self._listed:
            file = cache_folder() / "unreadable.txt"
            atomic_write(file, "".join(f"{line}\n" for line in self._listed))
            if len(self._listed) == count:
                _fail(DcclipError("no image could be read", "see the reasons in {}", file))
            warning_line(
                Message("{:,} images cannot be read; reasons: {}", len(self._listed), file)
            )
        for hint, names in self._hints.items():
            rest = Message(" and {:,} more", len(names) - 1) if len(names) > 1 else ""
            hint_line(Message("{} ({}{})", hint, names[0], rest))
        if self._hints:
            raise typer.Exit(1)


def info_line(line: str) -> None:
    """Print a line on stderr, once however many processes say it."""
    if is_first_process() and not is_launched():
        _label("", line, _CYAN)


def _label(label: str, line: str, colour: int) -> None:
    """Print a line on stderr in the user's language, its label coloured in a terminal, control
    characters escaped.
    """
    label = translated(label)
    line = printable(translated(line))
    if sys.stderr.isatty():
        line = filled(label + line, os.get_terminal_size(sys.stderr.fileno()).columns or 80)[
            len(label) :
        ]
        label = f"\033[1;{colour}m{label}\033[0m"
    sys.stderr.write(f"{label}{line}\n")


def talk(quiet: bool = False, verbose: bool = False) -> Progress:
    """Progress on stderr, silent if `quiet` and in all processes of a run but the first; library
    logs if `verbose`.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr, force=True
    )
    if not verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    silent = quiet or not is_first_process()
    if silent or not sys.stderr.isatty():
        os.environ.setdefault(
            "HF_HUB_DISABLE_PROGRESS_BARS", "1"
        )  # bars of downloads would flood a log
    return Silent() if silent else stderr_progress()


def has_screen() -> bool:
    """Whether a browser can be opened for the user: a terminal with a display, not ssh, not a
    container.
    """
    drawn = sys.platform in ("darwin", "win32") or any(
        map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))
    )
    return drawn and sys.stdout.isatty()


def counted(
    talk: Progress, name: str, items: Iterable[Item], total: int, at_once: bool = False
) -> Iterator[Item]:
    """The items, with progress; without a bar if each item is printed `at_once` on the same
    terminal.
    """
    with (Silent() if at_once and sys.stdout.isatty() else talk).task(name, total) as task:
        for item in items:
            yield item
            task.advance()


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout, columns of numbers aligned right; in one of numbers alone, only the
    names wrap.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    lines = list(rows)
    numbers = [all(map(_NUMBER.match, filter(None, cells))) for cells in zip(*lines, strict=True)]
    numbers = numbers or [True] * len(columns)
    for number, column in enumerate(map(translated, columns)):
        right = number and numbers[number]
        no_wrap = number if all(numbers[1:]) else not number
        table.add_column(
            column, justify="right" if right else "left", overflow="fold", no_wrap=bool(no_wrap)
        )
    for row in lines:
        table.add_row(*(Text(printable(translated(cell))) for cell in row))
    with printing():
        # A table's own title would wrap at the table's width.
        wide = not console.is_terminal
        console.print(printable(translated(title)), style="bold", markup=False, soft_wrap=wide)
        console.print(table)


def show_fields(title: str, fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values on stdout under a title; the values of all such blocks start in one
    column.
    """
    from rich.cells import set_cell_size
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    with printing():
        console.print(translated(title), style="bold", markup=False, soft_wrap=True)
        for name, value in fields:
            lines = translated(value).split("\n")
            for number, row in enumerate(
                row for line in lines for row in rows(line, console.width - _NAME_WIDTH)
            ):
                label = set_cell_size("" if number else f"  {translated(name)}", _NAME_WIDTH)
                console.print(label + row.rstrip(), markup=False, emoji=False)


def show_json(value: Any) -> None:
    _write(as_json(value, indent=2) + "\n")


def show(text: str) -> None:
    _write("".join(f"{printable(line)}\n" for line in translated(text).split("\n")))


def show_now(line: str) -> None:
    """Print one line of data on stdout, and hand it over at once to what reads it."""
    show(line)
    flush()


def _write(text: str) -> None:
    with printing():
        sys.stdout.write(text)


def flush() -> None:
    """Hand over what was printed on stdout."""
    with printing():
        sys.stdout.flush()


@contextmanager
def printing() -> Iterator[None]:
    """Let an error of the block, which writes to stdout, say so."""
    try:
        yield
    except OSError as error:
        error.filename = _STDOUT
        raise


def show_path(path: Path) -> None:
    """Print the path of a result on stdout, once however many processes made it."""
    if is_first_process() and not is_launched():
        show(str(path))
