"""Ctrl-C, SIGTERM and SIGHUP: raised where a command is, noted while training takes a step."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dcclip_cli.processes import NUMBERS, Stopped, asked, handled, noted

pytestmark = pytest.mark.any_cpu

COMMAND = """
import sys, time
from contextlib import suppress
from pathlib import Path
from dcclip_cli.files import atomic_file, atomic_folder
from dcclip_cli.processes import Stopped, asked, end_on_signals

end_on_signals()
try:
    with atomic_folder(Path(sys.argv[1], "一")), atomic_file(Path(sys.argv[1], "b")):
        print("ready", flush=True)
        time.sleep(600)
except Stopped:
    print("stopped", flush=True)
    if len(sys.argv) > 2:
        time.sleep(600)
    sys.exit(128 + asked())
"""


@contextmanager
def running(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command, waiting."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_a_command_by_an_exception_once_however_often_it_is_sent(tmp_path: Path, number: int) -> None:
    with running(str(tmp_path)) as process:
        for _ in range(9):  # as torchrun and `timeout` do
            os.killpg(process.pid, number)
        assert process.communicate(timeout=60)[0] == "stopped\n"
        assert process.returncode == 128 + number and list(tmp_path.iterdir()) == []


def test_a_second_signal_ends_a_command_at_once(tmp_path: Path, number: int = signal.SIGTERM) -> None:
    with running(str(tmp_path), "stays") as process:
        process.send_signal(number)
        assert process.stdout and process.stdout.readline() == "stopped\n"
        time.sleep(1.1)
        process.send_signal(number)
        assert process.wait(60) == 128 + number


def test_nohup_keeps_a_command_running_when_the_terminal_closes(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(str(tmp_path)) as process:
            process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_noted_signal_is_raised_at_the_end_of_the_block(number: int) -> None:
    steps, before = [], signal.getsignal(number)
    with pytest.raises(Stopped), handled(), noted():
        for _ in range(2):
            os.kill(os.getpid(), number)
            steps.append(asked())
    assert steps == [number, number]
    assert signal.getsignal(number) is before and asked() == 0


@pytest.mark.parametrize("early", [True, False])
def test_where_a_noted_block_waits_a_signal_is_raised_at_once_also_one_from_before(early: bool) -> None:
    steps = []
    with pytest.raises(Stopped), handled(), noted():
        if early:
            os.kill(os.getpid(), signal.SIGTERM)
        with noted(False):
            steps.append("inside")
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("never")
    assert steps == ([] if early else ["inside"])


def test_an_error_in_a_noted_block_is_not_replaced_by_the_signal() -> None:
    with pytest.raises(ValueError, match="猫"), handled(), noted():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("猫")
