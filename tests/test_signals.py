"""Ctrl-C and SIGTERM: held back in training, the end of a command, ignored by workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dcclip_cli.signals import HeldSignals

pytestmark = pytest.mark.any_cpu

# A command that makes a temporary folder, forks a worker, and waits in it.
COMMAND = """
import multiprocessing, os, sys, tempfile, time
from dcclip_cli.signals import begin_worker, end_on_signals, exit_command
end_on_signals()
def work():
    begin_worker()
    print(os.getpid(), flush=True)
    time.sleep(600)
try:
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        worker = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        worker.start()
        time.sleep(600)
except KeyboardInterrupt:
    print("结束 cleaned up", flush=True)
    exit_command()
"""


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_held_signal_interrupts_at_the_end_of_the_block(number: int) -> None:
    steps, before = [], signal.getsignal(number)
    held = HeldSignals()
    with pytest.raises(KeyboardInterrupt), held:
        steps.append(bool(held))
        send(number)
        send(number)
        steps.append(bool(held))
    assert steps == [False, True]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("early", [True, False])
def test_in_an_interruptible_part_a_held_signal_interrupts_at_once_also_one_from_before(early: bool) -> None:
    steps = []
    held = HeldSignals()
    with pytest.raises(KeyboardInterrupt), held:
        if early:
            send(signal.SIGTERM)
        with held.interruptible():
            steps.append("inside")
            send(signal.SIGTERM)
            steps.append("never")
    assert steps == ([] if early else ["inside"])


def test_an_error_in_the_block_is_not_replaced_by_the_signal() -> None:
    with pytest.raises(ValueError, match="猫"), HeldSignals():
        send(signal.SIGTERM)
        raise ValueError("猫")


@pytest.mark.parametrize(
    ("number", "times", "code"),
    [(signal.SIGTERM, 1, 143), (signal.SIGINT, 1, 130), (signal.SIGTERM, 9, 143)],  # torchrun repeats it
)
def test_a_signal_to_the_group_ends_a_command_in_order_and_its_worker_with_it(
    tmp_path: Path, number: int, times: int, code: int
) -> None:
    command = [sys.executable, "-c", COMMAND, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    for _ in range(times):
        os.killpg(process.pid, number)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors) == (code, "结束 cleaned up\n", "")
    assert list(tmp_path.iterdir()) == []
    assert ends(worker)


def test_a_worker_outlives_sigterm_but_not_its_killed_command(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    os.kill(worker, signal.SIGTERM)
    assert not ends(worker, within_s=0.5)
    process.kill()
    process.communicate(timeout=60)
    assert ends(worker)


def ends(pid: int, within_s: float = 30.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


# A command that a signal reaches while an object is finalized, where Python prints exceptions and goes on.
FINALIZED = """
import sys, time
from dcclip_cli.signals import end_on_signals, exit_command
end_on_signals()
class Finalized:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(600)
try:
    one = Finalized()
    del one
    time.sleep(600)
except KeyboardInterrupt:
    print("结束 cleaned up", flush=True)
    exit_command()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_a_finalizer_swallows_ends_the_command_all_the_same(number: int, code: int) -> None:
    command = [sys.executable, "-c", FINALIZED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "ready\n"
        begin = time.monotonic()
        process.send_signal(number)
        assert process.stdout.read() == "结束 cleaned up\n"
        assert process.wait(30) == code
        assert process.stderr.read() == ""
        assert time.monotonic() - begin < 15  # not by the alarm
