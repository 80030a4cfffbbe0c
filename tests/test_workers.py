"""Calls in worker processes: results and errors come back, and no worker outlives them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.processes import calls, process_pool

pytestmark = pytest.mark.any_cpu


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
    found = dict(run([0, 1, 2, 7, 8, 9]))
    assert sorted(found) == [0, 1, 2, 7, 8, 9]
    assert len({os.getpid(), *found.values()}) == 3
    assert not any(map(psutil.pid_exists, set(found.values())))


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


SCRIPT = """
import sys
from dcclip_cli.processes import calls, preload, process_pool
from tests.test_workers import surroundings
preload(["colorsys"])
with process_pool(2) as pool:
    print(*calls(pool, surroundings, ["colorsys"], ""), *calls(pool, surroundings, ["this"], ""))
"""


@pytest.mark.parametrize("arrow", [None, "mimalloc"])
def test_workers_have_what_was_preloaded_and_other_allocators_but_not_the_script(
    tmp_path: Path, arrow: str | None
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)  # without a guard: a worker that imported it would start others
    environment = os.environ | ({"ARROW_DEFAULT_MEMORY_POOL": arrow} if arrow else {})
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    made = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    allocator = arrow or "system"
    assert made.stdout == f"('{allocator}', '1', True) ('{allocator}', '1', False)\n", made.stderr
