"""The program `dcclip`; `accelerate launch -m dcclip_cli ...` runs it in every process."""

from __future__ import annotations

import os
import sys

from dcclip_cli.errors import Message
from dcclip_cli.language import load_catalogue, translated
from dcclip_cli.launched import end_with_command, is_launched, report
from dcclip_cli.signals import end_on_signals, exit_command, kept, watch_for_signals, work_is_done

TYPE_CHECKING = False  # anything else is imported where signals end the command
if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Timer

_NO_READER = 128 + 13  # as of a program that SIGPIPE ends, which dcclip ignores for its sockets
_LOADING_S, _PREDICT_S = 1.0, 1.8  # with a bundle, predict has answered by then


def main() -> None:
    """Run the command that the program was started with; signals end it in order from the first import on."""
    load_catalogue()  # a signal may come while another module is half imported: what its handler needs is there before
    end_on_signals(_report_kept if is_launched() else _say_stopped)
    if is_launched():
        end_with_command()
    from dcclip_cli.cli.streams import prepare_streams

    prepare_streams()
    watch_for_signals()
    loading = _say_loading(sys.argv[1:])
    from dcclip_cli.cli.app import app

    try:
        app(prog_name="dcclip")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # of click or rich: nobody reads the output any more
            end.code = _NO_READER
        work_is_done(end.code if isinstance(end.code, int) else 0)
        raise
    except BaseException as error:
        if is_launched():
            _report_crash(error)
        raise
    finally:
        if loading:
            loading.cancel()


def _say_loading(arguments: Sequence[str]) -> Timer | None:
    """Say that the command loads, should nothing else be shown in time."""
    from dcclip_cli.machine import is_first_process
    from dcclip_cli.progress import say_loading

    command = next((one for one in arguments if not one.startswith("-")), None)
    if command is None or {"-q", "--quiet", "-h", "--help"} & set(arguments) or is_launched() or not is_first_process():
        return None
    return say_loading(f"dcclip {command}", after_s=_PREDICT_S if command == "predict" else _LOADING_S)


def _report_kept(_line: str) -> None:
    report(kept=kept())


def _report_crash(error: BaseException) -> None:
    """Report the traceback, and exit at once: in the interpreter's own end gloo may hang (pytorch issue 56297)."""
    import traceback

    report(traceback="".join(traceback.format_exception(error)))
    exit_command(1)


def _say_stopped(line: str) -> None:
    """Print a line on stderr from a signal handler: past the streams, and below a bar, whose hidden cursor it shows."""
    label = translated(Message("stopped: "))
    label = f"\033[?25h\n\033[1;33m{label}\033[0m" if os.isatty(2) else label
    try:
        os.write(2, f"{label}{translated(line)}\n".encode(errors="backslashreplace"))
    except OSError:  # nobody reads it
        return


if __name__ == "__main__":
    main()
