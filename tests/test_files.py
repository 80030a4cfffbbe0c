"""Locks and reserved disk space, here and on a system that has neither fcntl nor posix_fallocate."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.eval.feature_cache import FeatureCache
from dcclip_cli.files import lock, new_array

# Only from this package and from filelock: other libraries go by os.name, which cannot be changed here.
WITHOUT_POSIX = """
import builtins, importlib, multiprocessing, os, pkgutil, sys
found = builtins.__import__
def without_posix(name, globals=None, *more, **named):
    by = (globals or {}).get("__name__", "").partition(".")[0]
    if name in ("fcntl", "resource", "pwd", "grp", "termios") and by in ("dcclip_cli", "filelock"):
        raise ModuleNotFoundError(name)
    return found(name, globals, *more, **named)
builtins.__import__ = without_posix
del os.posix_fallocate, os.sched_getaffinity, os.pread
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""
IMPORT_ALL = """
import dcclip_cli
for module in pkgutil.walk_packages(dcclip_cli.__path__, "dcclip_cli."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from dcclip_cli.predict.footprint import peak_bytes
from dcclip_cli.machine import cores
from dcclip_cli.processes import loading_processes
assert cores() >= 1 and loading_processes(2) == 0 and peak_bytes() is None
"""
FILL = """
from pathlib import Path
import numpy as np
from dcclip_cli.train.cache_blocks import Block, BlockStore, Rows
folder = Path(sys.argv[1])
blocks = [Block("first", 0, 4), Block("second", 4, 6)]
rows = np.arange(12.0).reshape(6, 2)
BlockStore(folder, (), blocks, 4).fill(lambda block, row: iter([Rows(row, {"x": rows[row : block.last]})]), print)
assert np.array_equal(BlockStore(folder, (), blocks, 4).read("x", np.asarray([5, 0, 3])), rows[[5, 0, 3]])
assert sorted(path.name for path in folder.iterdir()) == ["first", "second"]
from dcclip_cli.eval.feature_cache import FeatureCache
for _ in range(2):
    with FeatureCache(folder).rows({"model": "m"}, 3) as kept:
        if len(kept.missing(np.arange(3))):
            kept.fill(np.arange(3), rows[:3], {})
assert np.array_equal(kept.take(np.arange(3))[1], rows[:3])
"""
HOLD = "import sys, time; from pathlib import Path; from dcclip_cli.files import lock\n"
HOLD += "with lock(Path(sys.argv[1])) as mine: print(mine, flush=True); time.sleep(600)"


@pytest.mark.parametrize("code", [IMPORT_ALL, FILL], ids=["import", "fill"])
def test_a_system_without_posix_imports_every_module_and_fills_caches(code: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX + code, str(tmp_path)], check=True)


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


@pytest.mark.parametrize("posix", [True, False])
def test_a_new_array_is_zeros_whose_space_is_taken(
    posix: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not posix:
        monkeypatch.delattr(os, "posix_fallocate")
    file = tmp_path / "new.npy"
    array = new_array(file, np.float32, (1000, 700))
    assert file.stat().st_blocks * 512 >= array.nbytes == 1000 * 700 * 4
    array[999] = 1
    array.flush()
    assert np.load(file).sum() == 700


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"features\.npy") as raised, FeatureCache(tmp_path).rows({}, 3) as rows:
        rows.fill(np.arange(3), np.ones((3, 2)), {})
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.rglob("features.npy"))
