"""From a recipe file and `--set` overrides to a checked recipe, or to every mistake in it at once."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from dcclip_cli.errors import DcclipError
from dcclip_cli.recipe.document import Document, read, walk
from dcclip_cli.recipe.mistakes import sentences
from dcclip_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with where it came from: `text` is the file verbatim, `sha256` that of its bytes in UTF-8."""

    recipe: Recipe
    path: Path
    text: str
    sha256: str
    sets: tuple[str, ...]
    document: Document

    def missing_files(self) -> list[str]:
        """One line `place: key: PATH does not exist` for each path in the recipe that leads nowhere."""
        paths = ((at, value) for at, value in walk(self.document.values) if isinstance(value, str) and value[:1] == "/")
        return [
            f"{self.document.place(at)}: {'.'.join(map(str, at))}: {value} does not exist"
            for at, value in paths
            if not Path(value).exists() and not (glob.has_magic(value) and glob.glob(value, recursive=True))
        ]


def load(path: str | Path, sets: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in a YAML file with overrides like `distill.epochs=3` applied.

    Raises DcclipError whose `what` has one line per mistake: `file:line: key: what is wrong`.
    """
    path = Path(path)
    text, document = read(path)
    for expression in sets:
        document.override(expression)
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        what = "\n".join(sentences(error, Recipe, document))
        raise DcclipError(what, "see what a recipe may hold with: dcclip recipe schema") from None
    return LoadedRecipe(recipe, path, text, hashlib.sha256(text.encode()).hexdigest(), tuple(sets), document)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that `load` reads back to an equal recipe."""
    values = {key: value for key, value in recipe.model_dump(mode="json", by_alias=True).items() if value is not None}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
