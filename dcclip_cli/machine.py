"""The machine: cores that this process may use, processor features, and how libc and OpenMP use both."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

MachineClass = Literal["fast", "plain", "other"]

# What an idle OpenMP thread of libgomp does before it sleeps: loops of a few nanoseconds. Its default, 300,000, keeps
# cores busy that a loading process or another job needs: benchmarks/train/machine.py.
_SPIN_LOOPS = 1000
# malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_KEEP_MEMORY = {-4: 0, -1: 2**31 - 1, -2: 256 * 2**20}
_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "FEAT_BF16"}


def cores(root: Path = Path("/")) -> int:
    """How many cores this process may use: those of its affinity, or fewer if its cgroup has a quota."""
    return max(1, math.ceil(min(affinity_cores() or os.cpu_count() or 1, cgroup_quota(root))))


def affinity_cores() -> int | None:
    """How many cores the system may run this process on; None where there is no affinity (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def cgroup_quota(root: Path) -> float:
    """Cores' worth of time that the cgroups (v2 or v1) of this process allow, infinite where they set no limit."""
    try:
        entries = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return math.inf
    quotas = [math.inf]
    for _, controllers, path in entries:
        hierarchy = root / "sys/fs/cgroup" / controllers  # v2 names no controllers
        own = hierarchy / path.strip("/")
        quotas += [_quota(group) for group in (own, *own.parents) if group.is_relative_to(hierarchy)]
    return min(quotas)


def _quota(folder: Path) -> float:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def physical_cores(root: Path = Path("/")) -> int | None:
    """How many physical cores the machine has, None where the system does not tell."""
    if sys.platform == "darwin":
        count = _sysctl("-n", "hw.physicalcpu").strip()
        return int(count) if count.isdecimal() else None
    try:
        files = list(root.glob("sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list"))
        return len({file.read_text() for file in files}) or None
    except OSError:
        return None


@dataclass(frozen=True)
class Memory:
    """Memory of the machine in bytes; `available` can be used without swapping."""

    total: int
    available: int


def memory(root: Path = Path("/")) -> Memory | None:
    """The machine's memory, as /proc/meminfo has it; None where there is no such file."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kibibytes = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()}
    if not {"MemTotal", "MemAvailable"} <= set(kibibytes):
        return None
    return Memory(1024 * int(kibibytes["MemTotal"]), 1024 * int(kibibytes["MemAvailable"]))


def load_average() -> tuple[float, float, float] | None:
    """Processes that run or wait for a core, on average over 1, 5 and 15 minutes; None where the system does not tell.

    In a container too it is that of the whole machine.
    """
    try:
        return os.getloadavg()
    except (AttributeError, OSError):  # Windows has none
        return None


def _sysctl(*asked: str) -> str:
    """What macOS says of itself; empty where it cannot be asked."""
    try:
        return subprocess.run(["sysctl", *asked], capture_output=True, text=True).stdout
    except OSError:
        return ""


def busy_cores(seconds: float = 0.2) -> float:
    """How many of this process's cores other work keeps busy, over some tenths of a second in which it only waits."""
    import psutil

    percent = psutil.cpu_percent(seconds, percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(percent))
    return sum(percent[core] for core in own if core < len(percent)) / 100


@cache
def cpu_features() -> frozenset[str]:
    """The processor's features as the system names them (avx2, avx512_vnni, FEAT_BF16); empty where it names none."""
    if sys.platform == "darwin":
        on = (line.rpartition(".")[2] for line in _sysctl("hw.optional", "machdep.cpu.features").splitlines())
        return frozenset(name.partition(":")[0] for name in on if name.endswith(": 1"))
    return frozenset(_cpuinfo("flags", "Features").split())


@cache
def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    if sys.platform == "darwin":
        return _sysctl("-n", "machdep.cpu.brand_string").strip() or platform.machine()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*keys: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in keys)
    return next(found, "")


def has_native_bf16() -> bool:
    """Whether the processor multiplies bf16 itself (AVX512-BF16, AMX, ARM's BF16); elsewhere it is emulated, slowly."""
    return bool(_BF16 & cpu_features())


def has_vnni() -> bool | None:
    """Whether VNNI sums int8 products in 32 bits; None off x86-64, which needs none, and where it is unknown."""
    features = {name.lower().replace("_", "") for name in cpu_features()}
    if not _is_x86_64() or not features:
        return None
    return bool({"avx512vnni", "avxvnni"} & features)


def machine_class() -> MachineClass:
    """The class that figures are told apart by: x86-64 with AVX512-VNNI and native bf16, without them, or other."""
    if not _is_x86_64():
        return "other"
    return "fast" if has_native_bf16() and "avx512_vnni" in cpu_features() else "plain"


def _is_x86_64() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library is glibc: its numbers stay the same.

    glibc gives large blocks back and asks for them again, page by page, at every step of training and for every picture
    of a folder. Keeping them makes a step of EfficientNet-Lite0 a third faster, and saves 600 pages for each picture of
    640 x 480.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in _KEEP_MEMORY.items():
            mallopt(parameter, value)


def bound_spinning() -> None:
    """Let OpenMP threads that wait sleep soon: beside other work training is several times as fast, idle no slower.

    For libgomp, which reads it once: call this before torch is imported. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_LOOPS))
