"""The program `dcclip`: its commands, and nothing that takes long to import."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dcclip_cli import __version__
from dcclip_cli.cli import (
    align,
    collect,
    compare,
    datasets,
    distill,
    doctor,
    embed,
    errors,
    eval,
    export,
    models,
    predict,
    recipe,
    run,
    search,
)
from dcclip_cli.machine import bound_spinning

app = typer.Typer(
    cls=errors.Guarded,
    name="dcclip",
    help="Make a light Chinese-English CLIP out of a big one, from data to device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"dcclip {__version__}\n")
        raise typer.Exit


@app.callback()
def dcclip(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Make a light Chinese-English CLIP out of a big one, from data to device."""
    bound_spinning()


_LIFE = "The life of a model, one recipe from start to end"
_USE = "Using a model"
_ABOUT = "Looking things up"

app.command(rich_help_panel=_LIFE)(run.run)
app.command(rich_help_panel=_LIFE)(collect.collect)
app.command(rich_help_panel=_LIFE)(distill.distill)
app.command(rich_help_panel=_LIFE)(align.align)
app.command(rich_help_panel=_LIFE)(eval.eval)
app.command(rich_help_panel=_LIFE)(compare.compare)
app.command(rich_help_panel=_LIFE)(export.export)
app.command(rich_help_panel=_USE)(predict.predict)
app.command(rich_help_panel=_USE)(search.search)
app.command(rich_help_panel=_USE)(embed.embed)
app.add_typer(recipe.app, name="recipe", rich_help_panel=_ABOUT)
app.command(rich_help_panel=_ABOUT)(models.models)
app.command(rich_help_panel=_ABOUT)(datasets.datasets)
app.command(rich_help_panel=_ABOUT)(doctor.doctor)
