"""Ctrl-C, SIGTERM and SIGHUP: the end of a command, held back in training, ignored by workers."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dcclip_cli.signals import HeldSignals

pytestmark = pytest.mark.any_cpu

# A command with partial files and a worker, whose number it prints before it waits.
COMMAND = """
import multiprocessing.util, os, sqlite3, sys, time
from contextlib import suppress
from pathlib import Path
from dcclip_cli import signals
from dcclip_cli.files import atomic_file, atomic_folder
from dcclip_cli.signals import begin_worker, exit_command, interruptible, keeping, work_is_done

done = []
signals._GRACE_S = 2.0

def work():
    begin_worker()
    multiprocessing.util.get_temp_dir()  # as for shared memory
    print(os.getpid(), flush=True)
    time.sleep(600)

def wait():
    multiprocessing.get_context("fork").Process(target=work, daemon=True).start()
    time.sleep(600)

def wait_in_a_block_that_saves():
    try:
        with interruptible():
            wait()
    except KeyboardInterrupt:
        done.append("猫")
        raise

def wait_after_what_was_kept():
    with keeping(lambda: "结果 is written"):
        pass
    wait()

def wait_where_a_library_swallows_interrupts():
    with suppress(KeyboardInterrupt), interruptible():
        wait()
    time.sleep(600)

class Finalized:
    def __del__(self):
        wait()

def wait_in_a_finalizer():
    with interruptible():
        Finalized()
        time.sleep(600)

def wait_in_native_code():
    multiprocessing.get_context("fork").Process(target=work, daemon=True).start()
    numbers = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    sqlite3.connect(":memory:").execute(numbers).fetchone()

def wait_after_the_work():
    work_is_done(3)
    wait()

signals.end_on_signals(lambda line: os.write(2, f"stopped: {line}\\n".encode()))
signals.watch_for_signals()
folder = Path(sys.argv[1])
with keeping(lambda: f"{len(done)} of 9 is kept" if done else ""):
    try:
        with atomic_folder(folder / "一"), atomic_file(folder / "b"):
            globals()[sys.argv[2]]()
    except KeyboardInterrupt:
        exit_command()
"""
NOTHING = "stopped: nothing was kept this time; run the same command again\n"


NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
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


LATE = """
import os, sys, time
from dcclip_cli.signals import end_on_signals, work_is_done
end_on_signals(lambda line: os.write(2, line.encode()))
class Late:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"ready\\n")
        sleep(1)
sys.late = Late()
work_is_done(0)
"""


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_the_interpreter_ends_is_ignored(number: int) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LATE], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert (process.communicate(timeout=60), process.returncode) == (("", ""), 0)


@contextmanager
def running(folder: Path, where: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command, waiting, and its worker's number."""
    command = [sys.executable, "-c", COMMAND, str(folder), where]
    pipe = subprocess.PIPE
    settings = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=0, env=settings) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("times", [1, 9])  # torchrun repeats it
def test_a_signal_to_the_group_ends_a_command_at_once_with_its_worker_and_partial_files(
    tmp_path: Path, number: int, times: int
) -> None:
    with running(tmp_path, "wait") as (process, worker):
        begin = time.monotonic()
        for _ in range(times):
            os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (128 + number, NOTHING)
        assert ends(worker) and time.monotonic() - begin < 2
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "within_s", "said"),
    [
        ("wait_in_a_block_that_saves", 2, "stopped: 1 of 9 is kept; run the same command again to resume from there\n"),
        ("wait_after_what_was_kept", 2, "stopped: 结果 is written; run the same command again to resume from there\n"),
        ("wait_in_a_finalizer", 5, NOTHING),
        ("wait_in_native_code", 5, NOTHING),
        ("wait_where_a_library_swallows_interrupts", 15, NOTHING),
    ],
)
def test_wherever_a_signal_comes_what_is_kept_is_said_and_the_rest_removed(
    tmp_path: Path, where: str, within_s: float, said: str
) -> None:
    with running(tmp_path, where) as (process, worker):
        begin = time.monotonic()
        process.terminate()
        assert (process.communicate(timeout=60)[1], process.returncode) == (said, 143)
        assert time.monotonic() - begin < within_s
        assert ends(worker) and list(tmp_path.iterdir()) == []


def test_a_signal_after_the_work_is_done_changes_nothing_any_more(tmp_path: Path) -> None:
    with running(tmp_path, "wait_after_the_work") as (process, _):
        process.terminate()
        assert (process.communicate(timeout=60)[1], process.returncode) == ("", 3)


def test_nohup_keeps_a_command_running_when_the_terminal_closes(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(tmp_path, "wait") as (process, _):
            process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_worker_ignores_signals_but_not_the_end_of_its_killed_command(tmp_path: Path, reaped: bool) -> None:
    with running(tmp_path, "wait") as (process, worker):
        for number in NUMBERS:
            os.kill(worker, number)
        assert not ends(worker, within_s=0.5)
        process.kill()
        if reaped:
            process.wait()
        assert ends(worker)


def ends(pid: int, within_s: float = 2.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if ended(pid):
            return True
        time.sleep(0.05)
    return False


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
