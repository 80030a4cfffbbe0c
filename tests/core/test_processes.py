"""Signals are raised where a command is, noted while training takes a step; no worker outlives its calls."""

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

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import atomic_file
from dcclip_cli.core.processes import NUMBERS, Stopped, asked, calls, handled, noted, process_pool

pytestmark = pytest.mark.any_cpu

COMMAND = """
import sys, time
from contextlib import suppress
from pathlib import Path
from dcclip_cli.core.files import atomic_file, atomic_folder
from dcclip_cli.core.processes import Stopped, asked, end_on_signals

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
    steps = []
    before = signal.getsignal(number)
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


def work(number: int) -> tuple[int, int]:
    if number == 3:
        raise DcclipError("坏的 bad", "mend it")
    if number == 4:
        raise FileNotFoundError(2, "No such file", "/一")
    if number == 6:
        os.abort()
    time.sleep(0.1)
    return number, os.getpid()


def surroundings(module: str) -> tuple[str, str | None, bool]:
    import pyarrow

    return pyarrow.default_memory_pool().backend_name, os.environ.get("MALLOC_ARENA_MAX"), module in sys.modules


def run(numbers: list[int]) -> list[tuple[int, int]]:
    with process_pool(2) as pool:
        return list(calls(pool, work, numbers, "free memory"))


def test_results_come_back_from_several_processes_which_then_end() -> None:
    results = dict(run([0, 1, 2, 7, 8, 9]))
    assert sorted(results) == [0, 1, 2, 7, 8, 9]
    assert len({os.getpid(), *results.values()}) == 3
    assert not any(map(psutil.pid_exists, set(results.values())))


@pytest.mark.parametrize(
    ("number", "kind", "says", "notes"),
    [
        (3, DcclipError, "坏的 bad", "mend it"),
        (4, FileNotFoundError, "/一", "in work"),
        (6, DcclipError, "was killed", "free memory"),
    ],
)
def test_an_error_ends_all_workers_at_once(number: int, kind: type[Exception], says: str, notes: str) -> None:
    begin = time.monotonic()
    with pytest.raises(kind, match=says) as error:
        run([number, *[0] * 1000])
    assert time.monotonic() - begin < 30  # 50 s of work were left
    assert notes in str(getattr(error.value, "hint", error.value.__cause__))


def write(path: Path) -> None:
    if path.name == "坏":
        while not list(path.parent.glob(".*.partial")):
            time.sleep(0.01)
        raise DcclipError("坏的 bad", "mend it")
    with atomic_file(path):
        time.sleep(60)


def test_what_a_killed_worker_was_writing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(DcclipError, match="坏的"), process_pool(2, folders=[tmp_path]) as pool:
        list(calls(pool, write, [tmp_path / "index", tmp_path / "坏"], "free memory"))
    assert not list(tmp_path.iterdir())


SCRIPT = """
from dcclip_cli.core.processes import calls, preload, process_pool
from tests.core.test_processes import surroundings, work
preload(["colorsys"])
with process_pool(2) as pool:
    print(*calls(pool, surroundings, ["colorsys"], ""), *calls(pool, surroundings, ["this"], ""))
with process_pool(1, fresh=True) as pool:
    [_] = calls(pool, work, [0], "")
"""


@pytest.mark.parametrize("arrow", [None, "mimalloc"])
def test_workers_have_what_was_preloaded_and_other_allocators_but_not_the_script(
    tmp_path: Path, arrow: str | None, downloaded_folder: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)  # without a guard: a worker that imported it would start others
    environment = os.environ | ({"ARROW_DEFAULT_MEMORY_POOL": arrow} if arrow else {})
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    allocator = arrow or "system"
    assert done.stdout == f"('{allocator}', '1', True) ('{allocator}', '1', False)\n", done.stderr
