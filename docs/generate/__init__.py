"""The reference pages that are made from the code, by the name of their file in docs/reference."""

from collections.abc import Callable
from pathlib import Path

from docs.generate import cli, file_formats, python_api, recipe_keys

REFERENCE = Path(__file__).parents[1] / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli.page,
    "recipes.md": recipe_keys.page,
    "python-api.md": python_api.page,
    "file-formats.md": file_formats.page,
}
