"""The program `dcclip`; `accelerate launch -m dcclip_cli ...` runs it in every process."""

import io
import os
import sys
from contextlib import suppress

from dcclip_cli.core.errors import Message, load_catalogue, translated
from dcclip_cli.core.machine import is_first_process, is_launched, is_one_of_several, use_launcher
from dcclip_cli.core.processes import (
    AGAIN,
    asked,
    end_on_signals,
    end_with_launcher,
    ignore_signals,
    remove_sockets,
)

_NO_READER = 128 + 13  # as of a program that SIGPIPE ends, which dcclip ignores for its sockets
_WIDEST = 1_000  # columns of a terminal: rich fills each row, however wide
# with a bundle, predict has answered by then
_LOADING_S = 1.0
_PREDICT_S = 1.8


def main() -> None:
    """Run the command that the program was started with, from the first import on as signals can
    end it.
    """
    load_catalogue()
    end_on_signals()
    if {"run", "distill", "align"} & set(sys.argv[1:2]):
        use_launcher()
    if is_launched():
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun sets it
        end_with_launcher()
    try:
        _prepare_streams()
        from dcclip_cli.core.progress import say_loading

        arguments = sys.argv[1:]
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        is_quiet = (
            {"-q", "--quiet", "-h", "--help"} & set(arguments)
            or is_launched()
            or not is_first_process()
        )
        after_s = _PREDICT_S if command == "predict" else _LOADING_S
        loading = say_loading(f"dcclip {command}", after_s) if command and not is_quiet else None
        try:
            from dcclip_cli.cli.app import app

            app(prog_name="dcclip")
        finally:
            if loading:
                loading.cancel()
        ignore_signals()
        if is_one_of_several():
            _exit(0)
    except SystemExit as end:
        ignore_signals()
        no_reader = isinstance(
            end.__context__, BrokenPipeError
        )  # of click or rich: nobody reads the output any more
        if code := _NO_READER if no_reader else end.code:
            _exit(code if isinstance(code, int) else 1)
    except KeyboardInterrupt:  # outside of the command: while it is imported
        if is_first_process() and not is_launched():
            sys.stderr.write(f"{translated(Message('stopped: '))}{translated(AGAIN)}\n")
        _exit(128 + asked())


def _prepare_streams() -> None:
    """Make the standard streams usable, whatever they are: closed ones are like /dev/null, and
    nothing fails to print.

    What a stream cannot encode is printed as a backslash and its number. Paths read from stdin are
    decoded as those on the command line.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: a file that is opened next would take its place
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    if (width := os.environ.get("COLUMNS", "")).isdigit() and int(width[:9]) > _WIDEST:
        os.environ["COLUMNS"] = str(_WIDEST)


def _exit(code: int) -> None:
    """Exit past the interpreter's own end, which waits for threads and where gloo may hang
    (pytorch issue 56297).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):  # closed; nobody reads it
            stream.flush()
    if "multiprocessing" in sys.modules:
        remove_sockets()
    os._exit(code)


if __name__ == "__main__":
    main()
