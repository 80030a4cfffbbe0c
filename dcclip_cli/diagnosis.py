"""Facts for a bug report: the machine, the installed libraries, and the device and precision that commands choose.

What cannot be found out is None and not an error. Nothing names the user: paths start with ~ for the home folder.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcclip_cli import machine
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder
from dcclip_cli.versions import EXTRAS, LIBRARIES, VERSION, versions

# Features that decide what is fast here, by their names on Linux; macOS has other names for some.
_X86 = {
    name: {name} for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
} | {"avx2": {"avx2", "avx2_0"}}
_ARM = {
    "asimdhp": {"asimdhp", "FEAT_FP16"},
    "asimddp": {"asimddp", "FEAT_DotProd"},
    "i8mm": {"i8mm", "FEAT_I8MM"},
    "bf16": {"bf16", "FEAT_BF16"},
    "sve": {"sve"},
}
_X86_NAMES, _ARM_NAMES = {"x86_64", "amd64"}, {"aarch64", "arm64"}

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_VARIABLES = (
    *("DCCLIP_MODEL", "DCCLIP_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
)
_MORE_LIBRARIES = (
    *("torchvision", "accelerate", "safetensors", "onnxruntime-gpu", "onnx", "onnxscript"),
    *("datasets", "duckdb", "pyarrow"),
)
_CACHE_PARTS = ("features", "teacher-cache", "bf16-gain")


@dataclass(frozen=True)
class Processor:
    """`cores` may be used by this process: the least of the next two. Load averages are over 1, 5 and 15 minutes."""

    name: str
    architecture: str
    machine_class: machine.MachineClass
    features: dict[str, bool] | None
    cores: int
    affinity_cores: int | None
    cgroup_quota_cores: float | None
    logical_cores: int | None
    physical_cores: int | None
    load_average: tuple[float, float, float] | None


@dataclass(frozen=True)
class Storage:
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    current_folder_free_bytes: int | None
    cache_folder: str | None
    cache_folder_free_bytes: int | None
    cache_parts_bytes: dict[str, int]


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_total_bytes: int
    capability: str
    bf16: bool  # native


@dataclass(frozen=True)
class Auto:
    """The choice of `precision: auto` for a tower. `bf16_gain`: time in fp32 / time in bf16, if measured."""

    precision: str
    reason: str
    bf16_gain: float | None


@dataclass(frozen=True)
class Torch:
    """`device` is that of `--device auto`, `precision` the choice of `auto` on it: by use, then by kind of tower."""

    threads: int
    cpu_capability: str
    device: str
    build: str  # what torch was built for: CUDA 12.8, ROCm 6.4, CPU
    gpus: list[Gpu]
    mps: bool
    newton_schulz: str
    precision: dict[str, dict[str, Auto]]


@dataclass(frozen=True)
class Extra:
    """Missing packages by their import names, and the command that installs them."""

    missing: list[str]
    install: str


@dataclass(frozen=True)
class Diagnosis:
    """`notes` says what is wrong or slow, by subject. `torch` is None if it is not installed or broken.

    Values of `versions` are None for what is not installed, of `environment` for what is not set. `int8_vnni` is None
    on other processors than x86-64, where int8 needs no VNNI, and if the features are unknown.
    """

    versions: dict[str, str | None]
    system: str
    processor: Processor
    storage: Storage
    torch: Torch | None
    onnxruntime_providers: list[str] | None
    int8_vnni: bool | None
    extras: dict[str, Extra]
    thread_variables: dict[str, str | None]
    environment: dict[str, str | None]
    default_model: str
    notes: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose() -> Diagnosis:
    """The diagnosis of this machine. Imports torch if it is installed and times two small towers if bf16 is native."""
    notes: dict[str, str] = {}
    processor = _processor()
    vnni = machine.has_vnni()
    load, cores = processor.load_average, processor.logical_cores or processor.cores
    if load and load[0] > cores:  # both of the whole machine, even where this process may use a few of its cores
        notes["busy machine"] = f"load {load[0]:.1f} on {cores} cores: other work slows down training and measurements"
    if vnni is False:
        notes["int8"] = (
            "this processor has no VNNI: int8 is slower, and bundles exported by earlier versions of dcclip lose "
            "accuracy here: export them again"
        )
    found = versions(_MORE_LIBRARIES)
    return Diagnosis(
        versions={
            "dcclip": VERSION,
            "python": platform.python_version(),
            **{name: found.get(name) for name in (*LIBRARIES, *_MORE_LIBRARIES) if name != "dcclip"},
        },
        system=_system(),
        processor=processor,
        storage=_storage(),
        torch=_torch(notes),
        onnxruntime_providers=_providers(notes),
        int8_vnni=vnni,
        extras={name: _extra(name) for name in EXTRAS},
        thread_variables={name: _shown(os.environ.get(name)) for name in _THREAD_VARIABLES},
        environment={name: _shown(os.environ.get(name)) for name in _VARIABLES},
        default_model=_default_model(notes),
        notes=notes,
    )


def _shown(text: str | None) -> str | None:
    """`text` with ~ for the home folder, and without the name and password of a URL."""
    if text is None:
        return None
    text = re.sub(r"(?<=://)[^/@\s]*@", "", text)
    home = os.path.expanduser("~").rstrip("/\\")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home not in ("", "~") else text


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else platform.system()
    return f"{name}, {platform.platform()}"


def _processor() -> Processor:
    architecture = platform.machine().lower()
    every, names = machine.cpu_features(), _X86 if architecture in _X86_NAMES else _ARM
    quota = machine.cgroup_quota(Path("/"))
    return Processor(
        name=machine.cpu_name(),
        architecture=architecture,
        machine_class=machine.machine_class(),
        features={name: bool(also & every) for name, also in names.items()} if every else None,
        cores=machine.cores(),
        affinity_cores=machine.affinity_cores(),
        cgroup_quota_cores=quota if quota < float("inf") else None,
        logical_cores=os.cpu_count(),
        physical_cores=machine.physical_cores(),
        load_average=machine.load_average(),
    )


def _storage() -> Storage:
    memory = machine.memory()
    try:
        cache = cache_folder()
    except RuntimeError:  # there is no home folder
        cache = None
    return Storage(
        memory_total_bytes=memory.total if memory else None,
        memory_available_bytes=memory.available if memory else None,
        current_folder_free_bytes=_free(Path()),
        cache_folder=_shown(str(cache)) if cache else None,
        cache_folder_free_bytes=_free(cache) if cache else None,
        cache_parts_bytes={name: _size(cache / name) if cache else 0 for name in _CACHE_PARTS},
    )


def _free(folder: Path) -> int | None:
    """Bytes free on the disk of `folder`, which need not exist."""
    try:
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        return shutil.disk_usage(there).free
    except OSError:
        return None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they can be read."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _extra(name: str) -> Extra:
    missing = [package for package in EXTRAS[name] if not _is_installed(package)]
    return Extra(missing, f"pip install 'dcclip[{name}]'")


def _default_model(notes: dict[str, str]) -> str:
    from dcclip_cli.model.reference import resolve

    try:
        return _shown(resolve().description.removeprefix("model: ")) or ""
    except DcclipError as error:
        notes["default model"] = f"{_shown(error.what)}: {error.hint}"
        return "none"


def _providers(notes: dict[str, str]) -> list[str] | None:
    try:
        import onnxruntime
    except ImportError as error:
        notes["onnxruntime"] = f"cannot be imported: {_shown(str(error))}"
        return None
    return list(onnxruntime.get_available_providers())


def _torch(notes: dict[str, str]) -> Torch | None:
    if not _is_installed("torch"):
        return None
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: Windows, where a DLL is missing
        notes["torch"] = f"cannot be imported: {_shown(str(error))}"
        return None
    from dcclip_cli.model.precision import newton_schulz_precision, torch_device, typical_choices

    with warnings.catch_warnings(record=True) as caught:  # such as a driver that is too old
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    if caught:
        notes["GPU"] = "; ".join(str(one.message).splitlines()[0] for one in caught)
    device = usable = torch_device("auto")
    gpus: list[Gpu] = []
    try:
        gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if has_cuda else []
    except RuntimeError as error:  # a GPU that is broken or used exclusively by another process
        notes["GPU"], usable = str(error).partition("\n")[0], "cpu"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Torch(
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        device=device,
        build=f"ROCm {torch.version.hip}" if torch.version.hip else build,
        gpus=gpus,
        mps=torch.backends.mps.is_available(),
        newton_schulz=newton_schulz_precision(usable),
        precision={
            use: {kind: Auto(one.precision, one.reason, one.gain) for kind, one in kinds.items()}
            for use, kinds in typical_choices(usable).items()
        },
    )


def _gpu(number: int) -> Gpu:
    import torch

    with torch.cuda.device(number):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    about = torch.cuda.get_device_properties(number)
    return Gpu(about.name, about.total_memory, f"{about.major}.{about.minor}", bf16)
