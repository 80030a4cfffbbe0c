"""How does a process work for a command without outliving it?"""

from __future__ import annotations

import os
import signal
import threading
import time

_WATCH_S = 0.5


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin_worker(command: int) -> None:
    """Make this process a worker: Ctrl-C goes to the command alone, and a worker ends soon after its command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(command,), daemon=True).start()


def _end_with(command: int) -> None:
    while True:
        time.sleep(_WATCH_S)
        try:
            os.kill(command, 0)
        except ProcessLookupError:
            os._exit(1)
