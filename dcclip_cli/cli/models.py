"""`dcclip models`: the models that are here, and the students and teachers that a recipe can name."""

from __future__ import annotations

from pathlib import Path

from dcclip_cli.cli import console


def models() -> None:
    """List the models here, and what a recipe can name."""
    from dcclip_cli.errors import DcclipError
    from dcclip_cli.model.reference import STARTER, resolve
    from dcclip_cli.model.students import PRESETS

    rows = []
    for folder in sorted(Path("runs").glob("*/")):
        try:
            found = resolve(str(folder))
        except DcclipError:
            continue  # a run that has not come to a model yet
        rows.append((str(folder), found.kind, _relative(found.path)))
    rows.append((STARTER, resolve(STARTER).kind, "comes with dcclip"))
    console.show_table("Models here: --model NAME", ("name", "kind", "model"), rows)
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
