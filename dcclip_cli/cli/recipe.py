"""`dcclip recipe schema|show`: what a recipe may hold, and what one holds with all its defaults."""

from __future__ import annotations

import typer

from dcclip_cli.cli import console, flags, stages

app = typer.Typer(no_args_is_help=True, help="Look at recipes: what they may hold, what one holds.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    Save it as dcclip.schema.json and start a recipe with: # yaml-language-server: $schema=dcclip.schema.json
    """
    from dcclip_cli.recipe.schema import Recipe

    console.show_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()})


@app.command()
def show(recipe: flags.RecipeFile, sets: flags.Sets = None) -> None:
    """Print a recipe with every default written out."""
    from dcclip_cli.recipe.load import resolved_yaml

    console.show(resolved_yaml(stages.open_recipe(recipe, sets).recipe).rstrip("\n"))
