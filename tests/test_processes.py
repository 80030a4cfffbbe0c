"""Calls in worker processes: results and errors come back, and no worker outlives them."""

import os
import signal
import sys
import time

import psutil
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.processes import WorkerKilledError, Workers, calls, end_workers, start_early
from tests.test_signals import ends

pytestmark = pytest.mark.any_cpu


@pytest.fixture(autouse=True)
def no_workers_of_other_tests() -> None:
    """A command that failed before it used those started early leaves them to the end of this process."""
    end_workers()


class UnpicklableError(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"错误 {one} {other}")


def work(number: int) -> tuple[int, int]:
    if number == 3:
        raise DcclipError("坏的 bad", "mend it")
    if number == 4:
        raise FileNotFoundError(2, "No such file", "/一")
    if number == 5:
        raise UnpicklableError(1, 2)
    if number == 6:
        os.abort()
    sys.stdout.write("no answer")
    sys.stdout.flush()
    time.sleep(0.1)
    return number, os.getpid()


def allocators(_: int) -> tuple[str, str | None]:
    import pyarrow

    return pyarrow.default_memory_pool().backend_name, os.environ.get("MALLOC_ARENA_MAX")


def imported(module: str) -> bool:
    return module in sys.modules


def workers() -> list[int]:
    return [process.pid for process in psutil.Process().children() if "dcclip_cli.processes" in process.cmdline()]


def test_results_come_back_from_several_processes_which_then_end() -> None:
    found = dict(calls(work, [0, 1, 2, 7, 8, 9], 2))
    assert sorted(found) == [0, 1, 2, 7, 8, 9]
    assert os.getpid() not in found.values() and workers() == []


def test_workers_return_freed_memory_unless_the_environment_names_other_allocators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list(calls(allocators, [0], 1)) == [("system", "1")]
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")
    assert list(calls(allocators, [0], 1)) == [("mimalloc", "1")]


def test_workers_that_are_started_early_have_imported_what_calls_need() -> None:
    start_early(2, ["colorsys"])
    assert list(calls(imported, ["colorsys", "sndhdr"] * 2, 2)).count(True) == 2 and workers() == []


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_forked_workers_end_with_the_one_that_they_were_forked_from() -> None:
    with Workers(2) as started:
        both = {process for _, process in started.calls(work, [0, 1, 2, 7])}
        [first] = workers()
        os.kill(first, signal.SIGKILL)
        with pytest.raises(WorkerKilledError):
            list(started.calls(work, [0, 1]))
        assert len(both) == 2 and all(ends(process, 50) for process in both)


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (3, DcclipError, "坏的 bad"),
        (4, FileNotFoundError, "/一"),
        (5, RuntimeError, "UnpicklableError: 错误 1 2"),
        (6, WorkerKilledError, "was killed"),
    ],
)
def test_an_error_ends_all_workers_at_once(number: int, kind: type[Exception], says: str) -> None:
    begin = time.monotonic()
    with pytest.raises(kind, match=says) as error:
        list(calls(work, [number, *[0] * 1000], 2))
    assert workers() == [] and time.monotonic() - begin < 50
    if number == 4:
        assert "in work" in error.value.__notes__[0]  # its traceback there
