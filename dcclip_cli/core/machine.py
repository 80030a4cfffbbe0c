"""The machine: cores, memory, processor features, settings of malloc, OpenMP and cuBLAS."""

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dcclip_cli.core.errors import Message

MachineClass = Literal["fast", "plain", "other"]

# Loops of a few nanoseconds that an idle OpenMP thread of libgomp spins before it sleeps. The
# default, 300,000, keeps cores busy that a loading process or another job needs:
# docs/results/engineering.md.
_SPIN_LOOPS = 1000
# malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD.
_KEEP_MEMORY = {-4: 0, -1: 2**31 - 1, -2: 256 * 2**20}
_RETURN_MEMORY = {
    -4: 2**16,
    -1: 2**17,
    -2: 2**17,
    -3: 2**17,
}  # glibc's defaults, M_MMAP_THRESHOLD (-3) fixed
_MACOS_OPEN_FILES = (
    10_240  # OPEN_MAX: the most that macOS accepts where its hard limit is "unlimited"
)
# torchrun's variables, and those of Open MPI's mpirun and of srun that say the same
_LAUNCHERS = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "SLURM_PROCID"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"),
    "LOCAL_WORLD_SIZE": (
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "SLURM_STEP_TASKS_PER_NODE",
    ),  # Slurm's may be 8(x4),2
}
# below those that systems give to outgoing connections
_FIRST_PORT = 10_000
_PORTS = 20_000
_BF16 = {"avx512_bf16", "amx_bf16", "bf16", "FEAT_BF16"}


def cores(root: Path = Path("/")) -> int:
    """How many cores this process may use: those of its affinity, or fewer if its cgroup has a
    quota.
    """
    return max(1, math.ceil(min(affinity_cores() or os.cpu_count() or 1, cgroup_quota(root))))


def affinity_cores() -> int | None:
    """How many cores the system may run this process on; None where there is no affinity (macOS,
    Windows).
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def cgroup_quota(root: Path) -> float:
    """Number of cores that the cgroups (v2 or v1) of this process allow; infinite if they set no
    limit.
    """
    try:
        entries = [
            line.split(":", 2)
            for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        ]
    except OSError:
        return math.inf
    quotas = [math.inf]
    for _, controllers, path in entries:
        hierarchy = root / "sys/fs/cgroup" / controllers  # v2 names no controllers
        cgroup = hierarchy / path.strip("/")
        for folder in (cgroup, *cgroup.parents):
            if not folder.is_relative_to(hierarchy):
                break
            with suppress(OSError):
                if (folder / "cpu.max").is_file():
                    quota, period = (folder / "cpu.max").read_text("utf-8").split()
                else:
                    files = (folder / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
                    quota, period = (file.read_text("utf-8").strip() for file in files)
                if quota not in ("max", "-1"):
                    quotas.append(int(quota) / int(period))
    return min(quotas)


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's also has what the parent had when it started this process
        [line] = [
            line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:")
        ]
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Memory:
    """Memory of the machine in bytes; `available` can be used without swapping."""

    total: int
    available: int


def memory(root: Path = Path("/")) -> Memory | None:
    """The machine's memory according to /proc/meminfo; None if there is no such file."""
    try:
        lines = (root / "proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    kibibytes = {
        name: value.split()[0]
        for name, _, value in (line.partition(":") for line in lines)
        if value.split()
    }
    if not {"MemTotal", "MemAvailable"} <= set(kibibytes):
        return None
    return Memory(1024 * int(kibibytes["MemTotal"]), 1024 * int(kibibytes["MemAvailable"]))


def _sysctl(*names: str) -> str:
    """The output of macOS's sysctl; empty if it is not available."""
    try:
        return subprocess.run(["sysctl", *names], capture_output=True, text=True).stdout
    except OSError:
        return ""


def load_averages() -> tuple[float, float, float] | None:
    """Of the whole machine over 1, 5 and 15 minutes; None on Windows."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def busy_machine() -> Message | None:
    """What to say where the whole machine, of which this process may use a few cores, has more
    work than cores.
    """
    load = load_averages()
    count = os.cpu_count()
    if not load or not count or load[0] <= count:
        return None
    return Message(
        "load {:.1f} on {} cores: other programs slow down training and measurements",
        load[0],
        count,
    )


@cache
def cpu_features() -> frozenset[str]:
    """The processor's features as the system names them (avx2, avx512_vnni, FEAT_BF16); empty if
    unknown.
    """
    if sys.platform == "darwin":
        on = (
            line.rpartition(".")[2]
            for line in _sysctl("hw.optional", "machdep.cpu.features").splitlines()
        )
        return frozenset(name.partition(":")[0] for name in on if name.endswith(": 1"))
    return frozenset(_cpuinfo("flags", "Features").split())


@cache
def cpu_name() -> str:
    """The processor's name, or its architecture if the name is unknown."""
    if sys.platform == "darwin":
        return _sysctl("-n", "machdep.cpu.brand_string").strip() or platform.machine()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*keys: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    values = (
        line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in keys
    )
    return next(values, "")


def has_native_bf16() -> bool:
    """Whether the processor has bf16 instructions (AVX512-BF16, AMX, ARM's BF16); without, bf16 is
    emulated slowly.
    """
    return bool(_BF16 & cpu_features())


def has_vnni() -> bool | None:
    """Whether the processor has VNNI, which sums int8 products in 32 bits; None if not x86-64 or
    unknown.
    """
    features = {name.lower().replace("_", "") for name in cpu_features()}
    return bool({"avx512vnni", "avxvnni"} & features) if _is_x86_64() and features else None


def machine_class() -> MachineClass:
    """The class of machine for measurements: x86-64 with AVX512-VNNI and native bf16, x86-64
    without, or other.
    """
    if not _is_x86_64():
        return "other"
    return "fast" if has_native_bf16() and "avx512_vnni" in cpu_features() else "plain"


def _is_x86_64() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def keep_pandas_out() -> None:
    """Keep pyarrow from importing pandas for lists in this process: 0.4 s of a core. `to_pandas`
    still works.
    """
    import pyarrow as pa

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "pandas":
                raise ImportError(name)

    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, Finder)
        try:
            pa.array([])
        finally:
            sys.meta_path.remove(Finder)


def keep_freed_memory() -> None:
    """Tune glibc's malloc to reuse freed memory; results do not change.

    glibc returns large blocks to the kernel and requests them again, page by page, at every
    training step and for every image. Keeping them makes a step of EfficientNet-Lite0 a third
    faster and saves 600 pages per image of 640 x 480.
    """
    _tune_malloc(_KEEP_MEMORY)


def return_freed_memory() -> None:
    """Let glibc return freed blocks from 128 KiB on at once; by itself it keeps up to 32 MiB. Same
    results.
    """
    _tune_malloc(_RETURN_MEMORY)


def _tune_malloc(settings: Mapping[int, int]) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in settings.items():
            mallopt(parameter, value)


def set_library_defaults() -> None:
    """Settings in the environment that libraries read once, before they are imported; the user's
    own are kept.

    Waiting OpenMP threads of libgomp sleep soon: training next to other work is several times as
    fast, alone no slower. cuBLAS gives the same results each time, which deterministic algorithms
    need. CUDA's allocator grows its segments: with texts of many lengths it would reserve far more
    than it allocates. onnxruntime (from 1.32 on) and huggingface_hub do not tell their makers what
    they are used for.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_LOOPS))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if (
        sys.platform == "linux" and "PYTORCH_ALLOC_CONF" not in os.environ
    ):  # the variable's later, weaker name
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def allow_open_files() -> int:
    """Raise this process's soft limit of open files to the hard one, which is returned."""
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return _MACOS_OPEN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(soft, _MACOS_OPEN_FILES if hard == resource.RLIM_INFINITY else hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def can_fork() -> bool:
    """Whether processes may be forked: not on Windows, and not on macOS, whose libraries' threads
    make that unsafe.
    """
    return hasattr(os, "fork") and sys.platform != "darwin"


def loading_processes(
    number: int | Literal["auto"], device: str = "cpu", processes: int = 1
) -> int:
    """Number of processes that load batches: `number`, or 0 if processes cannot be forked
    (Windows, macOS).

    auto: 1 on the CPU, whose cores compute; on a GPU the cores of each of `processes` that train
    here, less one. Each has up to 250 MB of batches. Data sets and tokenizers are handed over by
    forking, not by pickling.
    """
    if not can_fork():
        return 0
    if number != "auto":
        return number
    return 1 if device == "cpu" else max(1, cores() // processes - 1)


ERROR_FILE = "DCCLIP_ERROR_FILE"  # where a process of `--at-a-time` reports its error as well
LAUNCHED = "dcclip-processes"  # the run of torch's launcher that `--processes` starts


def is_launched() -> bool:
    """Whether `dcclip --processes` started this process: it reports its error to the command,
    which prints it.
    """
    return os.environ.get("TORCHELASTIC_RUN_ID") == LAUNCHED


def use_launcher() -> None:
    """Set torchrun's variables where srun or Open MPI's mpirun started this process and others.

    Those that are set have priority. MASTER_ADDR stays unset if the launcher does not name the
    host of process 0.
    """
    env = os.environ
    is_batch_script = (
        "SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env
    )  # one process, whatever SLURM_NTASKS is
    if is_batch_script and "OMPI_COMM_WORLD_SIZE" not in env:
        return
    values = {
        name: next(filter(None, map(env.get, names)), "") for name, names in _LAUNCHERS.items()
    }
    if values["WORLD_SIZE"] in ("", "1") or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= env.keys():
        return
    values["LOCAL_WORLD_SIZE"] = re.split("[(,]", values["LOCAL_WORLD_SIZE"])[0]
    nodes = env.get("SLURM_STEP_NODELIST") or env.get(
        "SLURM_JOB_NODELIST", ""
    )  # gpu[07-09,12],cpu1
    is_alone = values["LOCAL_WORLD_SIZE"] == values["WORLD_SIZE"]
    values["MASTER_ADDR"] = (
        re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0] or "localhost" * is_alone
    )
    job = int(env.get("SLURM_JOB_ID", 0)) + int(env.get("SLURM_STEP_ID", 0))
    values |= {"MASTER_PORT": str(_FIRST_PORT + job % _PORTS), "OMP_NUM_THREADS": "1"}
    for name, value in values.items():
        if value:
            env.setdefault(name, value)


def is_one_of_several() -> bool:
    """Whether a launcher (torchrun, accelerate launch, srun, mpirun) started this process and
    others.
    """
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the one that writes for all."""
    return os.environ.get("RANK", "0") == "0"
