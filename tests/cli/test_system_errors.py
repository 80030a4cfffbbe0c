"""Errors of the operating system, and of libraries that pass them on, name the file and say what to do."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from dcclip_cli.cli.system_errors import explained
from dcclip_cli.errors import DcclipError, writing
from dcclip_cli.files import atomic_file

OPTIONS = {"--out", "--set"}


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()
    return caught.value


def told(error: BaseException, options: set[str] | frozenset[str] = frozenset()) -> DcclipError:
    found = explained(error, options)
    assert found is not None
    return found


def full_device() -> BinaryIO:
    """A stream that cannot be written. Libraries must not get the path of a device: some replace what they write."""
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")


def numpy_file_of_a_strided_array() -> None:
    with full_device() as stream:
        np.zeros((100_000, 2))[:, 0].tofile(stream)


def parquet_file() -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with full_device() as stream:
        pq.write_table(pa.table({"猫": range(100_000)}), stream)


def plain_file() -> None:
    with full_device() as stream:
        stream.write(bytes(100_000))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
@pytest.mark.parametrize("write", [numpy_file_of_a_strided_array, parquet_file, plain_file])
def test_a_full_disk_names_the_file_and_the_free_space_whatever_wrote_it(
    write: Callable[[], None], tmp_path: Path
) -> None:
    def save() -> None:
        with writing(tmp_path / "猫 cat"):
            write()

    found = told(raised(save), OPTIONS)
    assert found.what.startswith(f"{tmp_path}/猫 cat: no space left on the disk (") and found.what.endswith("B free)")
    assert "write elsewhere with --out" in found.hint
    assert "--out" not in told(raised(save)).hint  # which this command does not have


def test_files_in_place_of_folders_and_the_reverse_are_told_apart(tmp_path: Path) -> None:
    def partial_file() -> None:
        with atomic_file(tmp_path / "无 none" / "a.json") as temporary:
            temporary.write_text("{}")

    file, loop = tmp_path / "文件 file", tmp_path / "loop"
    file.write_text("")
    loop.symlink_to(loop)
    cases: dict[str, Callable[[], object]] = {
        f"{file} is a file, not a folder": lambda: (file / "x").mkdir(),
        f"{file} exists already": file.mkdir,
        f"{tmp_path} is a folder, not a file": lambda: tmp_path.open("w"),
        f"{tmp_path}/{'长' * 90}: the name is too long": lambda: (tmp_path / ("长" * 90)).open("w"),
        f"{loop}: symbolic links lead in a circle": loop.open,
        f"{tmp_path}/none does not exist": (tmp_path / "none").open,
        f"{tmp_path}/无 none/a.json does not exist": partial_file,  # by its final name
    }
    for what, call in cases.items():
        assert told(raised(call)).what == what


def test_limits_of_the_process_are_explained() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        error = raised(lambda: [open(os.devnull) for _ in range(100)])  # noqa: SIM115
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told(error).hint == "allow more with: ulimit -n 4096"
    assert "no more processes" in told(RuntimeError("can't start new thread")).what
    assert "no more processes" in told(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")).what
    assert told(raised(lambda: np.zeros(2**55))).what.startswith("there is not enough memory")
    assert told(RuntimeError("duckdb: Cannot open file: Too many open files")).what == "too many files are open"
    assert "not enough memory" in told(ImportError("onnxruntime.so: failed to map segment from shared object")).what
    assert "batch_size" not in told(MemoryError()).hint and "batch_size" in told(MemoryError(), OPTIONS).hint


@pytest.mark.parametrize(
    "error", [ValueError("errno 28"), OSError(5, "io"), OSError("x"), KeyError(1), RuntimeError("shape"), EOFError()]
)
def test_our_own_errors_are_not_explained_away(error: Exception) -> None:
    assert explained(error, OPTIONS) is None
