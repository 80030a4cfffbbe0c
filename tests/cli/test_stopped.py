"""Commands that a signal stops: from the first import on, with one line that is true, and nothing left behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_cpu
STOPPED = "stopped: run the same command again\n"


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dcclip_cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, process_group=0)


def handles_signals(process: "subprocess.Popen[str]") -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGHUP - 1) & 1)  # the last of them that is handled


def wait(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which signals are handled")
def test_a_command_can_be_stopped_while_it_is_imported(tmp_path: Path) -> None:
    with start(tmp_path, "predict", "猫", "dog") as process:
        wait(process, lambda: handles_signals(process))
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=60) == ("", STOPPED) and process.returncode == 129
