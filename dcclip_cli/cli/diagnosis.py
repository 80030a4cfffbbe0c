"""What a bug report needs: the machine, what is installed on it, and what the commands choose there.

Nothing that cannot be found out is an error: it is None. Nothing here names the user: paths start with ~ for home.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcclip_cli import __version__, machine
from dcclip_cli.cli.console import EXTRAS
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder
from dcclip_cli.versions import LIBRARIES, versions

if TYPE_CHECKING:
    from torch import nn

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
_CACHE_PARTS = ("features", "streams", "bf16-gain")


@dataclass(frozen=True)
class Processor:
    """`cores` is what this process may use: the least of the next two. Load averages are over 1, 5 and 15 minutes."""

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
    """What `precision: auto` takes for a tower, and why. `bf16_gain`: time in fp32 over time in bf16, if measured."""

    precision: str
    reason: str
    bf16_gain: float | None


@dataclass(frozen=True)
class Torch:
    """`device` is what `--device auto` takes, `precision` what `auto` means there: by use, then by kind of tower."""

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
    """Packages by the names they are imported by. `install` brings those that are missing."""

    missing: list[str]
    install: str


@dataclass(frozen=True)
class Diagnosis:
    """`notes` tell what is wrong or slow here, by subject. `torch` is None where it is not installed or broken.

    `versions` are None for what is not installed, and so is `environment` for what is not set. `int8_vnni` is None off
    x86-64, where int8 needs no VNNI, and where the features are unknown.
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
    """Looks at this machine. Imports torch if it is installed, and times a small model with it where bf16 is native."""
    notes: dict[str, str] = {}
    processor = _processor()
    vnni = machine.has_vnni()
    load, cores = processor.load_average, processor.logical_cores or processor.cores
    if load and load[0] > cores:  # both of the whole machine, even where this process may use a few of its cores
        notes["busy machine"] = (
            f"load {load[0]:.1f} on {cores} cores: other work slows down training and whatever is measured here"
        )
    if vnni is False:
        notes["int8"] = (
            "this processor has no VNNI: int8 is slower, and bundles that earlier versions of dcclip exported lose "
            "accuracy here: export them again"
        )
    found = versions(_MORE_LIBRARIES)
    return Diagnosis(
        versions={
            "dcclip": __version__,
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
        affinity_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
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
    """Bytes free where `folder` is, or will be."""
    try:
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        return shutil.disk_usage(there).free
    except OSError:
        return None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, those that can be looked at."""
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
    from dcclip_cli.model.precision import newton_schulz_precision, torch_device

    with warnings.catch_warnings(record=True) as told:  # such as a driver that is too old
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    if told:
        notes["GPU"] = "; ".join(str(one.message).splitlines()[0] for one in told)
    device = usable = torch_device("auto")
    gpus: list[Gpu] = []
    try:
        gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if has_cuda else []
    except RuntimeError as error:  # a GPU that another process has for itself, or that is broken
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
        precision=_precision(usable),
    )


def _gpu(number: int) -> Gpu:
    import torch

    with torch.cuda.device(number):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    about = torch.cuda.get_device_properties(number)
    return Gpu(about.name, about.total_memory, f"{about.major}.{about.minor}", bf16)


def _precision(device: str) -> dict[str, dict[str, Auto]]:
    """Use -> kind of tower -> choice. On a CPU with native bf16 it is measured, in about half a second."""
    from dcclip_cli.machine import keep_freed_memory
    from dcclip_cli.model.precision import bf16_gain, choice_by_gain, choice_without_probe

    kinds: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
        "convolutional": _convolutional,
        "transformer": _transformer,
    }
    uses = {"inference": False, "training": True}
    if known := choice_without_probe(device):
        same = Auto(known.precision, known.reason, None)
        return {use: dict.fromkeys(kinds, same) for use in uses}
    keep_freed_memory()  # as the commands do: without it fp32, whose blocks are larger, loses
    towers = {kind: make() for kind, make in kinds.items()}
    chosen: dict[str, dict[str, Auto]] = {}
    for use, training in uses.items():
        chosen[use] = {}
        for kind, (tower, shape) in towers.items():
            choice = choice_by_gain(bf16_gain(_pass(tower, shape, training)))
            chosen[use][kind] = Auto(choice.precision, choice.reason, choice.gain)
    return chosen


def _pass(tower: nn.Module, shape: tuple[int, ...], training: bool) -> Callable[[], None]:
    """One pass of `tower` over random numbers, backward too in `training`."""
    import torch

    batch = torch.rand(shape)
    if len(shape) == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.set_grad_enabled(training):
            out = tower.train(training)(batch).float().square().mean()
            if training:
                out.backward()
                tower.zero_grad()

    run()
    return run


def _convolutional() -> tuple[nn.Module, tuple[int, ...]]:
    """Six layers of MobileNet's kind, and a batch for them: bf16 gains what it does in EfficientNet-Lite0."""
    import torch
    from torch import nn

    def layers(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]

    tower = nn.Sequential(*layers(3, 32, 3, 2))
    for inputs, outputs, stride in ((32, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 128, 1)):
        wide = 6 * inputs
        tower.extend([*layers(inputs, wide), *layers(wide, wide, 3, stride, wide), *layers(wide, outputs)[:2]])
    return tower.to(memory_format=torch.channels_last), (8, 3, 112, 112)  # type: ignore[call-overload]


def _transformer() -> tuple[nn.Module, tuple[int, ...]]:
    """Two layers of a text tower, and a batch for them."""
    from torch import nn

    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (16, 32, 256)
