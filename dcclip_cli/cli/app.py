"""The program `dcclip` and its commands; imports nothing heavy."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dcclip_cli.cli import about, console, eval, predict, stages
from dcclip_cli.machine import bound_spinning
from dcclip_cli.versions import VERSION

app = typer.Typer(
    cls=console.CommandGroup,
    name="dcclip",
    help="Distill a large Chinese-English CLIP into a small one, from data to device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"dcclip {VERSION}\n")
        raise typer.Exit


@app.callback()
def dcclip(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distill a large Chinese-English CLIP into a small one, from data to device."""
    bound_spinning()


_LIFE = "Make a model from a recipe"
_USE = "Use a model"
_ABOUT = "Look things up"

app.command(rich_help_panel=_LIFE)(stages.run)
app.command(rich_help_panel=_LIFE)(stages.collect)
app.command(rich_help_panel=_LIFE)(stages.distill)
app.command(rich_help_panel=_LIFE)(stages.align)
app.command(rich_help_panel=_LIFE)(eval.eval)
app.command(rich_help_panel=_LIFE)(eval.compare)
app.command(rich_help_panel=_LIFE)(stages.export)
app.command(rich_help_panel=_USE)(predict.predict)
app.command(rich_help_panel=_USE)(predict.search)
app.command(rich_help_panel=_USE)(predict.embed)
app.add_typer(about.recipe_app, name="recipe", rich_help_panel=_ABOUT)
app.command(rich_help_panel=_ABOUT)(about.models)
app.command(rich_help_panel=_ABOUT)(eval.datasets)
app.command(rich_help_panel=_ABOUT)(about.doctor)
