"""Worker processes that load batches or do a command's work, and exit with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def loading_processes(wanted: int) -> int:
    """Number of processes that load batches: `wanted`, or 0 if processes cannot be forked (Windows).

    Data sets and tokenizers are handed over by forking, not by pickling.
    """
    return wanted if "fork" in multiprocessing.get_all_start_methods() else 0


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the one that writes for all (torchrun, accelerate launch)."""
    return os.environ.get("RANK", "0") == "0"


def begin_worker() -> None:
    """Make this process a worker: it ignores Ctrl-C and exits with its command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_command, daemon=True).start()


def _end_with_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)
