"""Cores by affinity and cgroup, classes of machines, and settings of libc and OpenMP."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dcclip_cli.machine import Memory, bound_spinning, cores, has_vnni, machine_class, memory, physical_cores

COUNT_NEW_PAGES = """
import resource
from dcclip_cli.machine import keep_freed_memory
{}
block = b"x" * 40_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    del block
    block = b"x" * 40_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(first: str) -> int:
    code = COUNT_NEW_PAGES.format(first)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is about the C library of Linux")
def test_a_block_that_was_freed_and_asked_for_again_brings_no_new_pages() -> None:
    assert new_pages("keep_freed_memory()") < 100 <= new_pages("")


def cgroup(root: Path, entries: str, files: dict[str, str]) -> Path:
    """A system whose process is in these cgroups, with these quotas."""
    for name, content in {"proc/self/cgroup": entries, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("entries", "files", "allowed"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ("0::/job/step\n", {"sys/fs/cgroup/job/cpu.max": "300000 100000\n"}, 3),
        (
            "4:cpu,cpuacct:/docker/1\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_a_quota_of_the_cgroup_bounds_the_cores(
    entries: str, files: dict[str, str], allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cores(cgroup(tmp_path, entries, files)) == allowed


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no /sys")
def test_cores_that_share_an_execution_unit_are_one_physical_core(tmp_path: Path) -> None:
    assert physical_cores(tmp_path) is None
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores(tmp_path) == 2


def test_memory_is_what_the_kernel_says_in_bytes(tmp_path: Path) -> None:
    assert memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\nHugePages_Total: 0\n"
    )
    assert memory(tmp_path) == Memory(2_097_152, 1_048_576)


def test_a_machine_is_fast_with_native_bf16_and_vnni_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for features, expected in (
        ({"avx2"}, "plain"),
        ({"avx512_vnni"}, "plain"),
        ({"avx512_vnni", "avx512_bf16"}, "fast"),
    ):
        monkeypatch.setattr("dcclip_cli.machine.cpu_features", lambda found=frozenset(features): found)
        assert machine_class() == expected
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert machine_class() == "other"


def test_the_bound_on_spinning_leaves_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for set_before, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in set_before.items():
            monkeypatch.setenv(name, value)
        bound_spinning()
        assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize(
    ("architecture", "features", "expected"),
    [
        ("x86_64", "avx2 avx512_vnni", True),
        ("AMD64", "avx2 avx_vnni", True),
        ("x86_64", "AVX2 AVX512VNNI", True),
        ("x86_64", "avx2 fma", False),
        ("x86_64", "", None),
        ("arm64", "asimddp", None),
    ],
)
def test_vnni_is_asked_of_x86_64_alone(
    architecture: str, features: str, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr("dcclip_cli.machine.cpu_features", lambda: frozenset(features.split()))
    assert has_vnni() is expected
