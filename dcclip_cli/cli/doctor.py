"""`dcclip doctor`: facts for a bug report about machine, libraries, and the device and precision that commands choose.

What cannot be found out is None and not an error. Nothing names the user: paths start with ~ for the home folder.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from dcclip_cli import machine
from dcclip_cli.cli import console
from dcclip_cli.errors import DcclipError
from dcclip_cli.files import cache_folder, free_bytes
from dcclip_cli.text import size_in_words
from dcclip_cli.versions import EXTRAS, LIBRARIES, VERSION, versions

# Features that decide what is fast here, by their names on Linux; macOS has other names for some.
_FEATURES = {
    **{name: {name} for name in ("avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")},
    "avx2": {"avx2", "avx2_0"},
    "asimdhp": {"asimdhp", "FEAT_FP16"},
    "asimddp": {"asimddp", "FEAT_DotProd"},
    "i8mm": {"i8mm", "FEAT_I8MM"},
    "bf16": {"bf16", "FEAT_BF16"},
    "sve": {"sve", "FEAT_SVE"},
}
_VARIABLES = (
    *("DCCLIP_MODEL", "DCCLIP_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
)
_MORE_LIBRARIES = (
    *("torchvision", "accelerate", "safetensors", "onnxruntime-gpu", "onnx", "onnxscript"),
    *("datasets", "duckdb", "pyarrow"),
)
_SECTIONS = ("processor", "storage", "torch", "extras", "notes")
Facts = dict[str, Any]


def doctor(
    as_json: Annotated[bool, Option("--json", help="Print one JSON object; sizes are in bytes.")] = False,
) -> None:
    """Show versions, hardware and missing packages, for a bug report."""
    found = diagnose()
    if as_json:
        return console.show_json(found)
    rest = {name: value for name, value in found.items() if name not in _SECTIONS}
    for title, facts in ({"dcclip": rest} | {name: found[name] or {} for name in _SECTIONS}).items():
        lines = [(name.removesuffix("_bytes"), _text(name, value)) for name, value in facts.items()]
        console.show_fields(title, [line for line in lines if line[1]])


def _text(name: str, value: Any) -> str:
    """A fact to read; empty for what is unknown or absent."""
    if isinstance(value, dict):
        return ", ".join(f"{inner} {text}" for inner, one in value.items() if (text := _text(name, one)))
    if isinstance(value, list | tuple):
        return ", ".join(_text(name, one) for one in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if name.endswith("_bytes"):
        return size_in_words(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def diagnose() -> Facts:
    """All facts, the same keys on every machine; `notes` says what is wrong or slow, by subject.

    Imports torch if it is installed and times two small towers if bf16 is native. `torch` is None without it, versions
    of what is not installed and variables that are not set are None, as is `int8_vnni` where int8 needs no VNNI.
    """
    notes: dict[str, str] = {}
    processor, vnni = _processor(), machine.has_vnni()
    load, cores = processor["load"], processor["logical"] or processor["cores"]
    if load and load[0] > cores:  # both of the whole machine, even where this process may use a few of its cores
        notes["busy machine"] = f"load {load[0]:.1f} on {cores} cores: other work slows down training and measurements"
    if vnni is False:
        notes["int8"] = "this processor has no VNNI: int8 is slower"
    libraries = dict.fromkeys((*LIBRARIES, *_MORE_LIBRARIES)) | versions(_MORE_LIBRARIES)
    return {
        "versions": {"dcclip": None, "python": platform.python_version()} | libraries | {"dcclip": VERSION},
        "system": _system(),
        "onnxruntime": _providers(notes),
        "int8_vnni": vnni,
        "variables": {name: _shown(os.environ.get(name)) for name in _VARIABLES},
        "model": _default_model(notes),
        "processor": processor,
        "storage": _storage(),
        "torch": _torch(notes),
        "extras": {name: _extra(name, packages) for name, packages in EXTRAS.items()},
        "notes": notes,
    }


def _shown(text: str | None) -> str | None:
    """`text` with ~ for the home folder, and without the name and password of a URL."""
    if text is None:
        return None
    text = re.sub(r"(?<=://)[^/@\s]*@", "", text)
    home = os.path.expanduser("~").rstrip("/\\")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home not in ("", "~") else text


def _system() -> str:
    with suppress(OSError, KeyError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.platform()}"
    return platform.platform()


def _processor() -> Facts:
    """`cores` may be used by this process, by its affinity and quota. Load averages are over 1, 5 and 15 minutes."""
    features, quota = machine.cpu_features(), machine.cgroup_quota(Path("/"))
    return {
        "name": machine.cpu_name(),
        "architecture": platform.machine().lower(),
        "class": machine.machine_class() if features else None,
        "features": [name for name, also in _FEATURES.items() if also & features] if features else None,
        "cores": machine.cores(),
        "affinity": machine.affinity_cores(),
        "cgroup_quota": quota if quota < float("inf") else None,
        "logical": os.cpu_count(),
        "physical": machine.physical_cores(),
        "load": machine.load_average(),
    }


def _storage() -> Facts:
    """Sizes of memory and of the cache folder, and what is free on its disk and on that of the current folder."""
    memory = machine.memory()
    try:
        cache = cache_folder()
    except RuntimeError:  # there is no home folder
        cache = None
    parts = [part for part in cache.iterdir() if part.is_dir()] if cache and cache.is_dir() else []
    return {
        "memory_bytes": memory.total if memory else None,
        "available_bytes": memory.available if memory else None,
        "free_here_bytes": _free(Path()),
        "cache_folder": _shown(str(cache)) if cache else None,
        "free_cache_bytes": _free(cache) if cache else None,
        "cached_bytes": {part.name: sum(map(_size, part.rglob("*"))) for part in sorted(parts)},
    }


def _free(folder: Path) -> int | None:
    """Bytes free on the disk of `folder`, which need not exist."""
    with suppress(OSError):
        return free_bytes(folder)
    return None


def _size(file: Path) -> int:
    with suppress(OSError):
        return 0 if file.is_dir() else file.lstat().st_size
    return 0


def _extra(name: str, packages: Sequence[str]) -> str:
    missing = [package for package in packages if not _is_installed(package)]
    return f"pip install 'dcclip[{name}]' (missing: {', '.join(missing)})" if missing else "installed"


def _is_installed(package: str) -> bool:
    with suppress(ModuleNotFoundError, ValueError):
        return importlib.util.find_spec(package) is not None
    return False


def _default_model(notes: dict[str, str]) -> str:
    from dcclip_cli.model.reference import resolve

    try:
        return _shown(resolve().description.removeprefix("model: ")) or ""
    except DcclipError as error:
        notes["model"] = f"{_shown(error.what)}: {error.hint}"
        return "none"


def _providers(notes: dict[str, str]) -> list[str] | None:
    try:
        import onnxruntime
    except ImportError as error:
        notes["onnxruntime"] = f"cannot be imported: {_shown(str(error))}"
        return None
    return [one.removesuffix("ExecutionProvider") for one in onnxruntime.get_available_providers()]


def _torch(notes: dict[str, str]) -> Facts | None:
    """`device` is that of `--device auto`; the precision that `auto` chooses on it by use and kind of tower."""
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
    gpus: list[str] = []
    try:
        gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if has_cuda else []
    except RuntimeError as error:  # a GPU that is broken or used exclusively by another process
        notes["GPU"], usable = str(error).partition("\n")[0], "cpu"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return {
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "build": f"ROCm {torch.version.hip}" if torch.version.hip else build,
        "GPU": gpus,
        "MPS": torch.backends.mps.is_available(),
        "newton_schulz": newton_schulz_precision(usable),
        **{
            use: {kind: f"{one.precision} ({one.reason})" for kind, one in kinds.items()}
            for use, kinds in typical_choices(usable).items()
        },
    }


def _gpu(number: int) -> str:
    import torch

    with torch.cuda.device(number):
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
    about = torch.cuda.get_device_properties(number)
    return f"{about.name}, {about.total_memory / 1e9:.1f} GB, capability {about.major}.{about.minor}, {bf16}"
