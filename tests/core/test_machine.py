"""Cores by affinity and cgroup, classes of machines, and settings of libc and OpenMP."""

import os
import platform
import sys
from pathlib import Path

import pytest

from dcclip_cli.core.machine import Memory, cores, has_vnni, machine_class, memory, set_library_defaults

V1 = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("entries", "files", "allowed"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 64),
        ("0::/job/step", {"sys/fs/cgroup/job/cpu.max": "300000 100000"}, 3),
        (
            "4:cpu,cpuacct:/docker/1",
            {f"{V1}/docker/1/cpu.cfs_quota_us": "200000", f"{V1}/docker/1/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("4:cpu,cpuacct:/", {f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_quota_of_the_cgroup_bounds_the_cores(
    entries: str, files: dict[str, str], allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in {"proc/self/cgroup": entries, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cores(tmp_path) == allowed


def test_memory_is_what_the_kernel_says_in_bytes(tmp_path: Path) -> None:
    assert memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(
        "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\nHugePages_Total: 0\n"
    )
    assert memory(tmp_path) == Memory(2_097_152, 1_048_576)


def test_the_bound_on_spinning_leaves_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
    for name in ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", *libraries):
        monkeypatch.setenv(name, "")  # put back afterwards
    for set_before, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in set_before.items():
            monkeypatch.setenv(name, value)
        set_library_defaults()
        assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator supports expandable segments on Linux alone")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_segments_of_the_gpus_allocator_grow_unless_the_user_configures_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str | None
) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # to be restored afterwards
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    set_library_defaults()
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected


@pytest.mark.parametrize(
    ("architecture", "features", "vnni", "expected"),
    [
        ("x86_64", "avx2", False, "plain"),
        ("x86_64", "avx2 avx512_vnni", True, "plain"),
        ("AMD64", "avx2 avx_vnni", True, "plain"),
        ("x86_64", "AVX2 AVX512VNNI", True, "plain"),
        ("x86_64", "avx512_vnni avx512_bf16", True, "fast"),
        ("x86_64", "", None, "plain"),
        ("arm64", "asimddp", None, "other"),
    ],
)
def test_a_machine_is_fast_with_native_bf16_and_vnni_which_is_asked_of_x86_64_alone(
    architecture: str, features: str, vnni: bool | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr("dcclip_cli.core.machine.cpu_features", lambda: frozenset(features.split()))
    assert (has_vnni(), machine_class()) == (vnni, expected)
