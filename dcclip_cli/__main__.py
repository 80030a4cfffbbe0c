"""The program `dcclip`; `accelerate launch -m dcclip_cli ...` runs it in every process."""

from __future__ import annotations

import os
from contextlib import suppress

from dcclip_cli.cli.streams import prepare_streams
from dcclip_cli.signals import end_on_signals, work_is_done


def main() -> None:
    """Run the command that the program was started with; signals end it in order from the first import on."""
    prepare_streams()
    end_on_signals(_say_stopped)
    from dcclip_cli.cli.app import app

    try:
        app(prog_name="dcclip")
    except SystemExit as end:
        work_is_done(end.code if isinstance(end.code, int) else 0)
        raise


def _say_stopped(line: str) -> None:
    """Print a line on stderr from a signal handler: past the streams, and below a bar, whose hidden cursor it shows."""
    label = "\033[?25h\n\033[1;33mstopped:\033[0m" if os.isatty(2) else "stopped:"
    with suppress(OSError):  # nobody reads it
        os.write(2, f"{label} {line}\n".encode(errors="backslashreplace"))


if __name__ == "__main__":
    main()
