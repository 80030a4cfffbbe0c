"""`dcclip recipe`, `models` and `doctor`: recipe keys, models to name, and facts for bug reports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError

if TYPE_CHECKING:
    from dcclip_cli.diagnosis import Auto, Diagnosis, Processor, Torch

recipe_app = typer.Typer(no_args_is_help=True, help="Show recipes: allowed keys; a recipe with all defaults.")


@recipe_app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Save it as dcclip.schema.json and start a recipe with: # yaml-language-server: $schema=dcclip.schema.json
    """
    from dcclip_cli.recipe.schema import Recipe

    console.show_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()})


@recipe_app.command()
def show(recipe: flags.RecipeFile, sets: flags.Sets = None) -> None:
    """Print a recipe with every default written out."""
    from dcclip_cli.recipe.load import resolved_yaml

    console.show(resolved_yaml(flags.open_recipe(recipe, sets).recipe).rstrip("\n"))


def models() -> None:
    """List the models found here, and the students and teachers that a recipe can name."""
    from dcclip_cli.model.reference import STARTER, resolve
    from dcclip_cli.model.students import PRESETS

    rows = []
    for folder in sorted(Path("runs").glob("*/")):
        try:
            found = resolve(str(folder))
        except DcclipError:
            continue  # a run without a model yet
        rows.append((str(folder), found.kind, _relative(found.path)))
    rows.append((STARTER, resolve(STARTER).kind, "included in dcclip"))
    console.show_table("Models found here: --model NAME", ("name", "kind", "model"), rows)
    presets = (
        (name, str(preset["image"]["timm"]), f"{preset['text']['layers']} layers x {preset['text']['width']}")
        for name, preset in PRESETS.items()
    )
    console.show_table("Students: student: {preset: NAME}", ("preset", "image tower", "text tower"), presets)
    teachers = (
        ("altclip", "BAAI/AltCLIP, the paper's", "hf:ORG/NAME"),
        ("transformers", "ChineseCLIP, CLIP, SigLIP, SigLIP2, MetaCLIP2", "hf:ORG/NAME"),
        ("open_clip", "any open_clip model, any model directory", "open_clip:ARCH/TAG, hf-hub:ORG/NAME, a path"),
    )
    console.show_table("Teachers: teacher: {kind: KIND, model: NAME}", ("kind", "models", "as --model"), teachers)


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


Fields = list[tuple[str, str]]
_UNKNOWN = "unknown"
_CLASSES = {
    "fast": "fast: AVX512-VNNI and native bf16",
    "plain": "plain: x86-64 without AVX512-VNNI or native bf16",
    "other": "other: not x86-64",
}


def doctor(
    as_json: Annotated[bool, Option("--json", help="Print one JSON object; sizes are in bytes.")] = False,
) -> None:
    """Show versions, hardware and missing packages, for a bug report."""
    from dcclip_cli.diagnosis import diagnose

    diagnosis = diagnose()
    if as_json:
        console.show_json(diagnosis.to_dict())
        return
    for title, fields in _page(diagnosis):
        console.show_fields(title, fields)


def _page(of: Diagnosis) -> Iterable[tuple[str, Fields]]:
    yield "Software", _software(of)
    yield "Processor", _processor(of)
    yield "Memory and disk", _storage(of)
    yield "Devices", _devices(of)
    if of.torch:
        yield "Precision that auto chooses, tried with two small towers", _precision(of.torch)
    yield "Extras", [(name, _extra(extra.missing, extra.install)) for name, extra in of.extras.items()]
    given = " ".join(f"{name}={value}" for name, value in of.environment.items() if value is not None)
    yield "Settings", [("variables", given or "none set"), ("default model", of.default_model)]
    if of.notes:
        yield "Notes", list(of.notes.items())


def _software(of: Diagnosis) -> Fields:
    libraries = {name: version for name, version in of.versions.items() if version and name not in ("dcclip", "python")}
    return [
        ("dcclip", f"{of.versions['dcclip']}, Python {of.versions['python']}"),
        ("system", of.system),
        ("libraries", " ".join(f"{name}=={version}" for name, version in libraries.items())),
    ]


def _processor(of: Diagnosis) -> Fields:
    processor = of.processor
    features = processor.features or {}
    there, lacking = ([name for name in features if features[name] is has] for has in (True, False))
    fields = [
        ("name", f"{processor.name}, {processor.architecture}"),
        ("class", _UNKNOWN if processor.features is None else _CLASSES[processor.machine_class]),
        ("features", ", ".join(there) + (f" (no {', '.join(lacking)})" if lacking else "") if features else _UNKNOWN),
        ("cores", _cores(processor)),
    ]
    if processor.load_average:
        fields.append(("load", " ".join(f"{load:.2f}" for load in processor.load_average) + " over 1, 5, 15 minutes"))
    threads = [f"torch {of.torch.threads}"] if of.torch else []
    threads += [f"{name} {value or 'not set'}" for name, value in of.thread_variables.items()]
    return [*fields, ("threads", ", ".join(threads))]


def _cores(processor: Processor) -> str:
    parts = [
        f"{processor.logical_cores or _UNKNOWN} in the machine ({processor.physical_cores or _UNKNOWN} physical)",
        f"affinity {processor.affinity_cores}" if processor.affinity_cores else "",
        f"cgroup quota {processor.cgroup_quota_cores or 'none'}",
    ]
    return f"{processor.cores} usable; {', '.join(part for part in parts if part)}"


def _storage(of: Diagnosis) -> Fields:
    storage = of.storage
    total, available = _size(storage.memory_total_bytes), _size(storage.memory_available_bytes)
    parts = ", ".join(f"{name} {_size(size)}" for name, size in storage.cache_parts_bytes.items() if size) or "empty"
    free = _size(storage.cache_folder_free_bytes)
    return [
        ("memory", f"{available} available of {total}" if storage.memory_total_bytes else _UNKNOWN),
        ("this folder", f"{_size(storage.current_folder_free_bytes)} free"),
        ("cache", f"{storage.cache_folder}: {parts}; {free} free" if storage.cache_folder else _UNKNOWN),
    ]


def _devices(of: Diagnosis) -> Fields:
    providers = ", ".join(one.removesuffix("ExecutionProvider") for one in of.onnxruntime_providers or []) or _UNKNOWN
    int8 = {True: "with VNNI", False: "without VNNI", None: _UNKNOWN}[of.int8_vnni]
    if of.processor.machine_class == "other":
        int8 = "needs no VNNI here"
    runtime = ("onnxruntime", f"{providers}; int8 {int8}")
    if not of.torch:
        return [("GPU", "unknown without torch"), runtime]
    gpus = [
        f"{gpu.name}, {_size(gpu.memory_total_bytes)}, capability {gpu.capability}, {'' if gpu.bf16 else 'no '}bf16"
        for gpu in of.torch.gpus
    ]
    if of.torch.mps:
        gpus.append("Apple's, through MPS")
    return [
        ("GPU", "\n".join(gpus) or "none"),
        ("torch", f"built for {of.torch.build}; {of.torch.cpu_capability} kernels; --device auto is {of.torch.device}"),
        runtime,
    ]


def _precision(torch: Torch) -> Fields:
    fields = [(use, "\n".join(_chosen(kinds))) for use, kinds in torch.precision.items()]
    return [*fields, ("Muon", f"Newton-Schulz in {torch.newton_schulz}")]


def _chosen(kinds: dict[str, Auto]) -> Iterable[str]:
    """A line for each kind of tower, or one line if nothing had to be measured."""
    for kind, auto in kinds.items():
        if auto.bf16_gain is None:
            yield f"{auto.precision}: {auto.reason}"
            return
        gain = f"{auto.bf16_gain:.1f} times as fast"
        yield f"{kind:<14}" + (f"bf16, {gain} as fp32" if auto.precision == "bf16" else f"fp32, bf16 is {gain}")


def _extra(missing: list[str], install: str) -> str:
    return f"{install} (missing: {', '.join(missing)})" if missing else "installed"


def _size(count: int | None) -> str:
    if count is None:
        return _UNKNOWN
    unit, scale = next(((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6)) if count >= scale), ("kB", 1e3))
    return f"{count / scale:.1f} {unit}"
