"""`dcclip doctor`: facts for a bug report about machine, libraries, and the device and precision that commands choose.

What cannot be found out is None and not an error. Nothing names the user: paths start with ~ for the home folder.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from dcclip_cli import machine
from dcclip_cli.cli import console
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import cache_folder
from dcclip_cli.versions import EXTRAS, LIBRARIES, VERSION, versions

# Features that decide what is fast here, by their names on Linux; macOS has other names for some.
_X86 = {
    "avx2": {"avx2", "avx2_0"},
    **{name: {name} for name in ("avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")},
}
_FEAT = {"asimdhp": "FEAT_FP16", "asimddp": "FEAT_DotProd", "i8mm": "FEAT_I8MM", "bf16": "FEAT_BF16", "sve": "FEAT_SVE"}
_ARM = {name: {name, on_macos} for name, on_macos in _FEAT.items()}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_VARIABLES = (
    *("DCCLIP_MODEL", "DCCLIP_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
)
_MORE_LIBRARIES = (
    *("torchvision", "accelerate", "safetensors", "onnxruntime-gpu", "onnx", "onnxscript"),
    *("datasets", "duckdb", "pyarrow"),
)
_UNKNOWN = "unknown"
_CLASSES = {
    "fast": "fast: AVX512-VNNI and native bf16",
    "plain": "plain: x86-64 without AVX512-VNNI or native bf16",
    "other": "other: not x86-64",
}
Facts = dict[str, Any]


def doctor(
    as_json: Annotated[bool, Option("--json", help="Print one JSON object; sizes are in bytes.")] = False,
) -> None:
    """Show versions, hardware and missing packages, for a bug report."""
    found = diagnose()
    if as_json:
        return console.show_json(found)
    for title, fields in _page(found).items():
        console.show_fields(title, fields.items())


def diagnose() -> Facts:
    """All facts, the same keys on every machine; `notes` says what is wrong or slow, by subject.

    Imports torch if it is installed and times two small towers if bf16 is native. `torch` is None without it, versions
    of what is not installed and variables that are not set are None, as is `int8_vnni` where int8 needs no VNNI.
    """
    notes: dict[str, str] = {}
    processor, vnni = _processor(), machine.has_vnni()
    load, cores = processor["load_average"], processor["logical_cores"] or processor["cores"]
    if load and load[0] > cores:  # both of the whole machine, even where this process may use a few of its cores
        notes["busy machine"] = f"load {load[0]:.1f} on {cores} cores: other work slows down training and measurements"
    if vnni is False:
        notes["int8"] = "this processor has no VNNI: int8 is slower"
    libraries = dict.fromkeys((*LIBRARIES, *_MORE_LIBRARIES)) | versions(_MORE_LIBRARIES)
    return {
        "versions": {"dcclip": None, "python": platform.python_version()} | libraries | {"dcclip": VERSION},
        "system": _system(),
        "processor": processor,
        "storage": _storage(),
        "torch": _torch(notes),
        "onnxruntime_providers": _providers(notes),
        "int8_vnni": vnni,
        "extras": {
            name: {
                "missing": [package for package in packages if not _is_installed(package)],
                "install": f"pip install 'dcclip[{name}]'",
            }
            for name, packages in EXTRAS.items()
        },
        "thread_variables": {name: _shown(os.environ.get(name)) for name in _THREAD_VARIABLES},
        "environment": {name: _shown(os.environ.get(name)) for name in _VARIABLES},
        "default_model": _default_model(notes),
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
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else platform.system()
    return f"{name}, {platform.platform()}"


def _processor() -> Facts:
    """`cores` may be used by this process. Load averages are over 1, 5 and 15 minutes."""
    architecture, features = platform.machine().lower(), machine.cpu_features()
    names = _X86 if architecture in ("x86_64", "amd64") else _ARM
    quota = machine.cgroup_quota(Path("/"))
    return {
        "name": machine.cpu_name(),
        "architecture": architecture,
        "machine_class": machine.machine_class(),
        "features": {name: bool(also & features) for name, also in names.items()} if features else None,
        "cores": machine.cores(),
        "affinity_cores": machine.affinity_cores(),
        "cgroup_quota_cores": quota if quota < float("inf") else None,
        "logical_cores": os.cpu_count(),
        "physical_cores": machine.physical_cores(),
        "load_average": machine.load_average(),
    }


def _storage() -> Facts:
    memory = machine.memory()
    try:
        cache = cache_folder()
    except RuntimeError:  # there is no home folder
        cache = None
    parts = ("features", "teacher-cache", "bf16-gain")
    return {
        "memory_total_bytes": memory.total if memory else None,
        "memory_available_bytes": memory.available if memory else None,
        "current_folder_free_bytes": _free(Path()),
        "cache_folder": _shown(str(cache)) if cache else None,
        "cache_folder_free_bytes": _free(cache) if cache else None,
        "cache_parts_bytes": {name: _bytes_in(cache / name) if cache else 0 for name in parts},
    }


def _free(folder: Path) -> int | None:
    """Bytes free on the disk of `folder`, which need not exist."""
    try:
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        return shutil.disk_usage(there).free
    except OSError:
        return None


def _bytes_in(folder: Path) -> int:
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


def _torch(notes: dict[str, str]) -> Facts | None:
    """`device` is that of `--device auto`, `precision` the choice of `auto` on it: by use, then by kind of tower."""
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
    gpus: list[Facts] = []
    try:
        gpus = [_gpu(number) for number in range(torch.cuda.device_count())] if has_cuda else []
    except RuntimeError as error:  # a GPU that is broken or used exclusively by another process
        notes["GPU"], usable = str(error).partition("\n")[0], "cpu"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "build": f"ROCm {torch.version.hip}" if torch.version.hip else build,
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
        "newton_schulz": newton_schulz_precision(usable),
        "precision": {
            use: {
                kind: {"precision": one.precision, "reason": one.reason, "bf16_gain": one.gain}
                for kind, one in kinds.items()
            }
            for use, kinds in typical_choices(usable).items()
        },
    }


def _gpu(number: int) -> Facts:
    import torch

    with torch.cuda.device(number):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    about = torch.cuda.get_device_properties(number)
    capability = f"{about.major}.{about.minor}"
    return {"name": about.name, "memory_total_bytes": about.total_memory, "capability": capability, "bf16": bf16}


def _page(found: Facts) -> dict[str, dict[str, str]]:
    """The facts as titles, names and values to read."""
    known = {name: version for name, version in found["versions"].items() if version}
    dcclip, python = known.pop("dcclip"), known.pop("python")
    variables = found["thread_variables"] | found["environment"]
    given = " ".join(f"{name}={value}" for name, value in variables.items() if value is not None)
    precision = Message("Precision that auto chooses, tried with two small towers")
    page = {
        Message("Software"): {
            "dcclip": f"{dcclip}, Python {python}",
            Message("system"): found["system"],
            Message("libraries"): " ".join(f"{name}=={version}" for name, version in known.items()),
        },
        Message("Processor"): _processor_fields(found["processor"]),
        Message("Memory and disk"): _storage_fields(found["storage"]),
        Message("Devices"): _device_fields(found),
        precision: {},
        Message("Extras"): {
            name: Message(
                "{command} (missing: {packages})", command=extra["install"], packages=", ".join(extra["missing"])
            )
            if extra["missing"]
            else Message("installed")
            for name, extra in found["extras"].items()
        },
        Message("Settings"): {
            Message("variables"): given or Message("none set"),
            Message("default model"): found["default_model"],
        },
        Message("Notes"): found["notes"],
    }
    if torch := found["torch"]:
        page[precision] = {use: "\n".join(_choices(kinds)) for use, kinds in torch["precision"].items()}
        page[precision]["Muon"] = f"Newton-Schulz in {torch['newton_schulz']}"
    return {title: fields for title, fields in page.items() if fields}


def _processor_fields(processor: Facts) -> dict[str, str]:
    has, load = processor["features"] or {}, processor["load_average"]
    lacking = ", ".join(name for name in has if not has[name])
    counts = [f"{name} {processor[f'{name}_cores'] or _UNKNOWN}" for name in ("logical", "physical", "affinity")]
    fields: dict[str, str] = {
        Message("name"): f"{processor['name']}, {processor['architecture']}",
        Message("class"): _CLASSES[processor["machine_class"]] if has else _UNKNOWN,
        Message("features"): ", ".join(filter(has.get, has)) + (f" (no {lacking})" if lacking else "")
        if has
        else _UNKNOWN,
        Message("cores"): f"{processor['cores']} usable; {', '.join(counts)}, cgroup quota "
        f"{processor['cgroup_quota_cores'] or 'none'}",
    }
    if load:
        fields[Message("load")] = " ".join(f"{one:.2f}" for one in load) + " over 1, 5, 15 minutes"
    return fields


def _storage_fields(storage: Facts) -> dict[str, str]:
    total, available = _size(storage["memory_total_bytes"]), _size(storage["memory_available_bytes"])
    parts = [f"{name} {_size(count)}" for name, count in storage["cache_parts_bytes"].items() if count]
    free = _size(storage["cache_folder_free_bytes"])
    cache = f"{storage['cache_folder']}: {', '.join(parts) or 'empty'}; {free} free"
    return {
        Message("memory"): f"{available} available of {total}" if storage["memory_total_bytes"] else _UNKNOWN,
        Message("this folder"): f"{_size(storage['current_folder_free_bytes'])} free",
        Message("cache"): cache if storage["cache_folder"] else _UNKNOWN,
    }


def _device_fields(found: Facts) -> dict[str, str]:
    torch, is_x86 = found["torch"], found["processor"]["machine_class"] != "other"
    providers = [one.removesuffix("ExecutionProvider") for one in found["onnxruntime_providers"] or [_UNKNOWN]]
    int8 = {True: "with VNNI", False: "without VNNI", None: _UNKNOWN if is_x86 else "needs no VNNI here"}
    fields = {"onnxruntime": f"{', '.join(providers)}; int8 {int8[found['int8_vnni']]}"}
    if not torch:
        return {"GPU": "unknown without torch", **fields}
    gpus = [
        f"{gpu['name']}, {_size(gpu['memory_total_bytes'])}, capability {gpu['capability']}, "
        f"{'' if gpu['bf16'] else 'no '}bf16"
        for gpu in torch["gpus"]
    ]
    gpus += ["Apple's, through MPS"] if torch["mps"] else []
    built = f"built for {torch['build']}; {torch['cpu_capability']} kernels, {torch['threads']} threads"
    return {"GPU": "\n".join(gpus) or "none", "torch": f"{built}; --device auto is {torch['device']}", **fields}


def _choices(kinds: Facts) -> Iterable[str]:
    """A line for each kind of tower, or one line if nothing had to be measured."""
    for kind, auto in kinds.items():
        if auto["bf16_gain"] is None:
            yield f"{auto['precision']}: {auto['reason']}"
            return
        gain = f"{auto['bf16_gain']:.1f} times as fast"
        yield f"{kind:<14}" + (f"bf16, {gain} as fp32" if auto["precision"] == "bf16" else f"fp32, bf16 is {gain}")


def _size(count: int | None) -> str:
    if count is None:
        return _UNKNOWN
    unit, scale = next(((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6)) if count >= scale), ("kB", 1e3))
    return f"{count / scale:.1f} {unit}"
