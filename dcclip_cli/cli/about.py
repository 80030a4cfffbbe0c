"""`dcclip recipe`, `models` and `doctor`: recipe keys, models to name, and facts about this
machine.
"""

import importlib
import importlib.util
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from dcclip_cli.cli import console, flags
from dcclip_cli.core import machine
from dcclip_cli.core.errors import DcclipError, Message, translated
from dcclip_cli.core.files import cache_folder, free_bytes
from dcclip_cli.core.text import size_in_words
from dcclip_cli.core.versions import LIBRARIES, VERSION, extras, versions

_NAME = Message("name")
_KIND = Message("kind")
_HUB = Message("hf:ORG/NAME, a path")
_OPEN_CLIP_HUB = Message("open_clip:ARCH/TAG, hf-hub:ORG/NAME, a path")
_TEACHERS = (
    ("altclip", Message("BAAI/AltCLIP, the paper's"), _HUB),
    (
        "transformers",
        "ChineseCLIP, QA-CLIP, CLIP, SigLIP, SigLIP2, MetaCLIP2, EmbeddingGemma 2",
        _HUB,
    ),
    (
        "fgclip2",
        Message("FG-CLIP2, with its repository's code"),
        Message("hf:ORG/NAME, a path, --trust-remote-code"),
    ),
    ("open_clip", Message("any open_clip model, any model directory"), _OPEN_CLIP_HUB),
)
recipe_app = typer.Typer(
    no_args_is_help=True, help="Show the allowed keys of recipes, or a recipe with all defaults."
)


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Save it as dcclip.schema.json and start a recipe with: # yaml-language-server:
    $schema=dcclip.schema.json
    """
    from dcclip_cli.recipe.schema import Recipe

    console.show_json(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    )


@recipe_app.command()
def show(recipe: flags.RecipeFile, sets: flags.Sets = None) -> None:
    """Print a recipe with all default values, except those of your own components, whose code is
    not imported.
    """
    from dcclip_cli.core.extensions import without_importing
    from dcclip_cli.recipe.load import resolved_yaml

    with without_importing():
        console.show(resolved_yaml(flags.open_recipe(recipe, sets).recipe).rstrip("\n"))


def models() -> None:
    """List the models on this machine, and the students and teachers for recipes."""
    from dcclip_cli.model.reference import STARTER, resolve
    from dcclip_cli.model.students import PRESETS

    rows = []
    patterns = "*/", "*/seed-*/", "*/*/seed-*/"  # a run, and the runs of a sweep
    for folder in sorted(folder for pattern in patterns for folder in Path("runs").glob(pattern)):
        try:
            model = resolve(str(folder))
        except DcclipError:
            continue  # a run without a model yet
        inside = model.path.is_relative_to(Path.cwd())
        rows.append(
            (str(folder), model.kind, os.path.relpath(model.path) if inside else str(model.path))
        )
    rows.append((STARTER, resolve(STARTER).kind, Message("included in dcclip")))
    console.show_table(
        Message("Models found here: --model NAME"), (_NAME, _KIND, Message("model")), rows
    )
    presets = []
    for name, preset in PRESETS.items():
        text = Message("{} layers x {}", preset["text"]["layers"], preset["text"]["width"])
        presets.append((name, str(preset["image"]["timm"]), text))
    columns = (Message("preset"), Message("image tower"), Message("text tower"))
    console.show_table(Message("Students: student: {{preset: NAME}}"), columns, presets)
    columns = (_KIND, Message("models"), Message("as --model"))
    console.show_table(
        Message("Teachers: teacher: {{kind: KIND, model: NAME}}"), columns, _TEACHERS
    )


# Features that decide what is fast here, by their names on Linux and on macOS.
_FEATURES = {
    *(
        "avx2",
        "avx2_0",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_bf16",
        "amx_int8",
    ),
    *(
        "asimdhp",
        "asimddp",
        "i8mm",
        "bf16",
        "sve",
        "FEAT_FP16",
        "FEAT_DotProd",
        "FEAT_I8MM",
        "FEAT_BF16",
    ),
}
_VARIABLES = (
    *(
        "DCCLIP_MODEL",
        "DCCLIP_CACHE",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "CUDA_VISIBLE_DEVICES",
    ),
    *(
        "OMP_NUM_THREADS",
        "GOMP_SPINCOUNT",
        "OMP_WAIT_POLICY",
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
    ),
)
_MORE_LIBRARIES = (
    *("torchvision", "accelerate", "safetensors", "onnxruntime-gpu", "onnx", "onnxscript"),
    *("datasets", "duckdb", "pyarrow"),
)
_SECTIONS = ("processor", "storage", "torch", "extras", "notes")
Facts = dict[str, Any]


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; sizes are in bytes.")
    ] = False,
) -> None:
    """Show versions, hardware and missing packages, for a bug report."""
    diagnosis = diagnose()
    if as_json:
        return console.show_json(diagnosis)
    rest = {name: value for name, value in diagnosis.items() if name not in _SECTIONS}
    for title, facts in (
        {"dcclip": rest} | {name: diagnosis[name] or {} for name in _SECTIONS}
    ).items():
        lines = [(name.removesuffix("_bytes"), _text(name, value)) for name, value in facts.items()]
        console.show_fields(title, [line for line in lines if line[1]])


def _text(name: str, value: Any) -> str:
    """A fact to read; empty for what is unknown or absent."""
    if isinstance(value, dict):
        return ", ".join(
            f"{inner} {text}" for inner, field in value.items() if (text := _text(name, field))
        )
    if isinstance(value, list | tuple):
        return ", ".join(_text(name, item) for item in value) or translated(Message("none"))
    if isinstance(value, bool) or value is None:
        return "" if value is None else translated(Message("yes") if value else Message("no"))
    if name.endswith("_bytes"):
        return size_in_words(value)
    return f"{value:.2f}" if isinstance(value, float) else str(translated(value))


def diagnose() -> Facts:
    """All facts, the same keys on every machine; what is unknown or absent is None. `notes`: what
    is wrong or slow.

    Nothing names the user: paths start with ~ for the home folder. Imports torch if it is
    installed, and times two small towers if bf16 is native.
    """
    from dcclip_cli.model.reference import resolve

    notes: dict[str, str] = {}
    try:
        model = _shown(resolve().description)
    except DcclipError as error:
        model = Message("none")
        notes["model"] = Message("{}: {}", _shown(error.what), _shown(error.hint))
    vnni = machine.has_vnni()
    if busy := machine.busy_machine():
        notes["busy machine"] = busy
    if vnni is False:
        notes["int8"] = Message("this CPU has no VNNI: int8 is slower")
    onnxruntime = _imported("onnxruntime", notes)
    providers = onnxruntime.get_available_providers() if onnxruntime else None
    libraries = dict.fromkeys((*LIBRARIES, *_MORE_LIBRARIES)) | versions(_MORE_LIBRARIES)
    return {
        "versions": {"dcclip": None, "python": platform.python_version()}
        | libraries
        | {"dcclip": VERSION},
        "system": platform.platform(),
        "onnxruntime": providers
        and [provider.removesuffix("ExecutionProvider") for provider in providers],
        "int8_vnni": vnni,
        "variables": {name: _shown(os.environ.get(name, "")) or None for name in _VARIABLES},
        "model": model,
        "processor": _processor(),
        "storage": _storage(),
        "torch": _torch(notes),
        "extras": _extras(),
        "notes": notes,
    }


def _processor() -> Facts:
    features = machine.cpu_features()
    quota = machine.cgroup_quota(Path("/"))
    return {
        "name": machine.cpu_name(),
        "architecture": platform.machine().lower(),
        "class": machine.machine_class() if features else None,
        "features": sorted(features & _FEATURES) if features else None,
        "cores": machine.cores(),  # that this process may use, by its affinity and quota
        "affinity": machine.affinity_cores(),
        "cgroup_quota": quota if quota < float("inf") else None,
        "logical": os.cpu_count(),
        "load": machine.load_averages(),  # over 1, 5 and 15 minutes
    }


def _storage() -> Facts:
    memory = machine.memory()
    cache = cache_folder()
    parts = sorted(part for part in cache.iterdir() if part.is_dir()) if cache.is_dir() else []
    bytes_by_part = {}
    for part in parts:
        sizes = [file.stat().st_size for file in part.rglob("*") if file.is_file()]
        bytes_by_part[part.name] = sum(sizes)
    return {
        "memory_bytes": memory.total if memory else None,
        "available_bytes": memory.available if memory else None,
        "free_here_bytes": free_bytes(Path()),
        "cache_folder": _shown(str(cache)),
        "free_cache_bytes": free_bytes(cache),
        "cached_bytes": bytes_by_part,
    }


def _extras() -> Facts:
    """Whether each extra is installed, or how to install it."""
    states: Facts = {}
    for extra, packages in extras().items():
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        states[extra] = Message("installed")
        if absent:
            missing = ", ".join(absent)
            states[extra] = Message("pip install 'dcclip[{}]' (missing: {})", extra, missing)
    return states


def _shown(text: str) -> str:
    """`text` with ~ for the home folder, and without the name and password of a URL."""
    if isinstance(text, Message):
        return text.map(_shown)
    text = re.sub(r"(?<=://)[^/@\s]*@", "", text)
    home = os.path.expanduser("~").rstrip("/\\")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home not in ("", "~") else text


def _imported(name: str, notes: dict[str, str]) -> Any:
    """A module; None if it is not installed, or cannot be imported, which is then a note."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError) as error:  # OSError: Windows, where a DLL is missing
        notes[name] = Message("cannot be imported: {}", _shown(str(error)))
        return None


def _torch(notes: dict[str, str]) -> Facts | None:
    """`device` is that of `--device auto`; the precision that `auto` chooses on it by use."""
    torch = _imported("torch", notes)
    if torch is None:
        return None
    from dcclip_cli.model.precision import choose_precision, newton_schulz_precision, torch_device

    with warnings.catch_warnings(record=True) as caught:  # such as a driver that is too old
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    if caught:
        notes["GPU"] = "; ".join(str(warning.message).splitlines()[0] for warning in caught)
    device = usable = torch_device("auto")
    gpus: list[str] = []
    try:
        for number in range(torch.cuda.device_count() if has_cuda else 0):
            with torch.cuda.device(number):
                bf16 = (
                    "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
                )
            gpu = torch.cuda.get_device_properties(number)
            memory = f"{gpu.total_memory / 1e9:.1f} GB"
            capability = f"capability {gpu.major}.{gpu.minor}"
            gpus.append(f"{gpu.name}, {memory}, {capability}, {bf16}")
    except RuntimeError as error:  # a GPU that is broken or used exclusively by another process
        notes["GPU"] = str(error).partition("\n")[0]
        usable = "cpu"
    depthwise = torch.nn.Conv2d(2, 2, 1, groups=2)
    trained = {"inference": None, "training": torch.nn.Module(), "depthwise": depthwise}
    choices = {use: choose_precision("auto", usable, module) for use, module in trained.items()}
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
            use: Message("{} ({})", choice.precision, choice.reason)
            for use, choice in choices.items()
        },
    }
