"""Partial files and folders are those of living processes: what killed ones left is removed, or put back."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcclip_cli import partials
from dcclip_cli.files import atomic_file, atomic_folder
from dcclip_cli.partials import partial, remove_if_abandoned

pytestmark = pytest.mark.any_cpu

WRITING = """
import sys, time
from pathlib import Path
from dcclip_cli.files import atomic_file, atomic_folder
with atomic_folder(Path(sys.argv[1], "模型 a")) as folder, atomic_file(Path(sys.argv[1], "b")) as file:
    (folder / "weights").write_bytes(b"half")
    file.write_bytes(b"half")
    print(flush=True)
    time.sleep(600)
"""

ENDING = """
import os, sys, threading, time
from pathlib import Path
from dcclip_cli.partials import partial, remove_own
def write():
    while True:
        with partial(Path(sys.argv[1], "模型"), folder=True) as folder:
            for number in range(200):
                (folder / str(number)).write_bytes(b"half")
for _ in range(3):
    threading.Thread(target=write, daemon=True).start()
time.sleep(0.2)
remove_own()
time.sleep(0.1)
os._exit(0)
"""


def test_a_process_that_ends_leaves_nothing_of_the_threads_that_go_on(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ENDING, str(tmp_path)], check=True, stderr=subprocess.DEVNULL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reaped", [True, False])
def test_the_next_writer_removes_what_a_killed_process_left_but_not_what_a_living_one_writes(
    tmp_path: Path, reaped: bool
) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        half = set(tmp_path.iterdir())
        assert len(half) == 2
        _write(tmp_path)
        assert half < set(tmp_path.iterdir())
        process.kill()
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still there
        _write(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["c"]


def _write(folder: Path) -> None:
    partials._swept.clear()  # as in a new process
    with atomic_file(folder / "c") as partial:
        partial.write_text("一")


@pytest.mark.parametrize("new_is_there", [True, False])
def test_a_folder_whose_replacement_was_killed_half_way_gets_its_name_back(
    tmp_path: Path, new_is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / ".模型.123-0123abcd.old"
    old.mkdir()
    if new_is_there:
        (tmp_path / "模型").mkdir()
    remove_if_abandoned(old)
    assert old.exists()  # it may be just being replaced
    monkeypatch.setattr(partials, "_SWAP_S", 0)
    remove_if_abandoned(old)
    assert [path.name for path in tmp_path.iterdir()] == ["模型"]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    names = [".a.partial", ".a.12.partial", "a.12-0123abcd.partial", ".a.12-0123abcd.partial.txt"]
    for name in names:
        (tmp_path / name).touch()
    _write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "c"])


def test_an_error_leaves_nothing_and_names_what_was_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a"), atomic_file(tmp_path / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError) as error, atomic_file(tmp_path / "无" / "b"):
        pass
    assert error.value.filename == str(tmp_path / "无" / "b")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="has no /proc")
def test_a_folder_in_which_nothing_can_be_created_is_an_error_at_once() -> None:
    for file in (Path("/proc/猫.npy"), Path("/proc/self/fd/猫.npy")):
        with pytest.raises(OSError, match="not supported") as error, atomic_file(file):
            pass
        assert (error.value.errno, error.value.filename) == (errno.EOPNOTSUPP, str(file))


SWEEP = """
import sys
from pathlib import Path
from dcclip_cli.partials import remove_if_abandoned
print("ready", flush=True)
while True:
    for path in Path(sys.argv[1]).iterdir():
        remove_if_abandoned(path)
"""


def test_a_new_folder_that_another_process_removes_before_it_is_locked_is_made_again(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path)], stdout=subprocess.PIPE) as sweeper:
        assert sweeper.stdout and sweeper.stdout.readline()
        try:
            for number in range(2000):
                with partial(tmp_path / "猫", folder=True) as folder:
                    (folder / "a").write_text(str(number))
                    folder.rename(tmp_path / f"{number}")
                (tmp_path / f"{number}" / "a").unlink()
                (tmp_path / f"{number}").rmdir()
        finally:
            sweeper.kill()
