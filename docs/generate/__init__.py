"""The reference pages that are made from the code, by the name of their file in docs/reference."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from docs.generate import cli, file_formats, layers, python_api, recipe_keys

REFERENCE = Path(__file__).parents[1] / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli.page,
    "cli.zh.md": partial(cli.page, "zh"),
    "recipes.md": recipe_keys.page,
    "recipes.zh.md": partial(recipe_keys.page, "zh"),
    "file-formats.md": file_formats.page,
    "layers.md": layers.page,
    "python-api.md": python_api.page,
}
