"""`dcclip recipe` and `models`: recipe keys, and models to name."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError, Message

_NAME, _KIND = Message("name"), Message("kind")
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
        rows.append(
            (
                str(folder),
                found.kind,
                os.path.relpath(found.path) if found.path.is_relative_to(Path.cwd()) else str(found.path),
            )
        )
    rows.append((STARTER, resolve(STARTER).kind, Message("included in dcclip")))
    console.show_table(Message("Models found here: --model NAME"), (_NAME, _KIND, Message("model")), rows)
    presets = (
        (
            name,
            str(preset["image"]["timm"]),
            Message("{} layers x {}", preset["text"]["layers"], preset["text"]["width"]),
        )
        for name, preset in PRESETS.items()
    )
    console.show_table(
        Message("Students: student: {{preset: NAME}}"),
        (Message("preset"), Message("image tower"), Message("text tower")),
        presets,
    )
    teachers = (
        ("altclip", Message("BAAI/AltCLIP, the paper's"), Message("hf:ORG/NAME, a path")),
        (
            "transformers",
            "ChineseCLIP, QA-CLIP, CLIP, SigLIP, SigLIP2, MetaCLIP2, UForm",
            Message("hf:ORG/NAME, a path"),
        ),
        (
            "fgclip2",
            Message("FG-CLIP2, with its repository's code"),
            Message("hf:ORG/NAME, a path, --trust-remote-code"),
        ),
        (
            "open_clip",
            Message("any open_clip model, any model directory"),
            Message("open_clip:ARCH/TAG, hf-hub:ORG/NAME, a path"),
        ),
    )
    console.show_table(
        Message("Teachers: teacher: {{kind: KIND, model: NAME}}"),
        (_KIND, Message("models"), Message("as --model")),
        teachers,
    )
