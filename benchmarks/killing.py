"""Start a command and kill it with SIGKILL after a given time."""

import os
import signal
import subprocess


def killed(command: list[str], after_s: float | None, group: bool = True) -> bool:
    """Kill a command with signal 9 after so many seconds, None for never; False where it came to its end.

    Without `group` only its first process is killed, whose children are then orphans that may still be writing when the
    next run begins.
    """
    process = subprocess.Popen(command, process_group=0, stdout=subprocess.DEVNULL)
    try:
        if code := process.wait(timeout=after_s):
            raise SystemExit(f"{command} ended with {code}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL) if group else process.kill()
        process.wait()
        return True
    return False
