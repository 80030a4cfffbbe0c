"""The program `dcclip` and its commands; imports nothing heavy."""

import os
import sys
from typing import Annotated

import typer

from dcclip_cli.cli import about, console, eval, make, models, predict, serve, stages
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.core.machine import set_library_defaults
from dcclip_cli.core.versions import VERSION

app = typer.Typer(
    cls=console.CommandGroup,
    name="dcclip",
    help="Distill a large Chinese-English CLIP into a small one, from data to device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        sys.stdout.write(f"dcclip {VERSION}\n")
        raise typer.Exit


@app.callback()
def dcclip(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distill a large Chinese-English CLIP into a small one, from data to device."""
    try:
        os.getcwd()
    except FileNotFoundError:  # in which torch ends the process
        raise DcclipError(
            "the working directory no longer exists", "change to an existing directory: cd DIR"
        ) from None
    set_library_defaults()


_PANELS = {
    "Make a model from a recipe": (
        *(
            make.fit,
            make.new,
            stages.run,
            stages.collect,
            stages.index,
            stages.distill,
            stages.align,
        ),
        *(eval.eval, eval.compare, stages.export, models.trim),
    ),
    "Use a model": (
        *(predict.predict, predict.search, predict.embed, predict.bench),
        *(models.calibrate, serve.demo, serve.serve, serve.mcp),
    ),
    "Publish a model": (models.push,),
    "Show information": (about.models, eval.datasets, about.doctor),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(about.recipe_app, name="recipe", rich_help_panel="Show information")
