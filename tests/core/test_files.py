"""Locks, caches and temporary files."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.files import atomic_file, atomic_folder, atomic_write, lock, remove_stale
from dcclip_cli.core.hub import files_on_hub
from tests.hub_server import Hub, serving

HOLD = "import sys, time; from pathlib import Path; from dcclip_cli.core.files import lock\n"
HOLD += "with lock(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(600)"


def test_a_lock_is_refused_while_another_process_has_it_and_free_once_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "锁 lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    with lock(file, wait=False) as mine:
        assert not mine
    holder.kill()
    holder.wait()
    for wait in (False, True):
        with lock(file, wait) as mine:
            assert mine


WRITING = """
import sys, time
from pathlib import Path
from dcclip_cli.core.files import atomic_file, atomic_folder
with atomic_folder(Path(sys.argv[1], "b 模型")) as folder, atomic_file(Path(sys.argv[1], "a")) as file:
    (folder / "weights").write_bytes(b"half")
    file.write_bytes(b"half")
    print(flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems remove by age")
def test_the_next_write_removes_what_a_killed_process_left_and_nothing_of_a_running_one(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        written = set(tmp_path.iterdir())
        replaced = tmp_path / sorted(path.name for path in written)[1].replace(".partial", ".old")
        replaced.mkdir()
        assert len(written) == 2 and after_another_write(tmp_path) == {*written, replaced}
        process.kill()
    assert after_another_write(tmp_path) == {replaced}


def test_what_a_process_elsewhere_was_writing_is_removed_when_nothing_in_it_has_changed_for_a_day(
    tmp_path: Path,
) -> None:
    number = 2**22 + 1  # more than Linux gives a process
    folder = tmp_path / f".b 模型.{number}-0123456789abcdef.partial"
    file = tmp_path / f".a.{number}-01234567.partial"  # as on systems without /proc
    others_file = tmp_path / ".of-others.partial"
    folder.mkdir()
    for path in (folder / "weights", file, others_file):
        path.touch()
    yesterday = time.time() - 25 * 3600
    for path in (file, folder, others_file):
        os.utime(path, (yesterday, yesterday))
    assert after_another_write(tmp_path) == {folder, others_file}, "the file in the folder is new"
    os.utime(folder / "weights", (yesterday, yesterday))
    assert after_another_write(tmp_path) == {others_file}


def after_another_write(folder: Path) -> set[Path]:
    """What is in a folder after a new process has written a file there, without that."""
    remove_stale.cache_clear()
    atomic_write(folder / "c", "一")
    (folder / "c").unlink()
    return set(folder.iterdir())


def test_an_error_leaves_nothing_of_what_was_being_written(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "a"), atomic_file(tmp_path / "b"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository of two files."""
    with serving(tmp_path) as server:
        branch = server.branch("ORG/clip")
        branch.mkdir(parents=True)
        for file in (branch / "config.json", branch / "vocab.txt", branch.parent / "visibility"):
            file.write_text("public")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
        yield server


def test_a_hub_that_cannot_be_reached_is_told_from_a_wrong_name(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(DcclipError, match=r"ORG/clip .* the hub cannot be reached: .*refused") as caught:
        files_on_hub("ORG/clip", "dataset")
    assert "hf download ORG/clip --repo-type dataset" in caught.value.hint
    with pytest.raises(DcclipError, match="neither a directory nor the name of a hub repository"):
        files_on_hub("/no/such/folder")
