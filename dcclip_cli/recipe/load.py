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
from dcclip_cli.options import OldKey
from dcclip_cli.recipe.document import Document, read, walk
from dcclip_cli.recipe.mistakes import sentences
from dcclip_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and its source: `text` is the file verbatim, `sha256` that of its bytes in UTF-8.

    `warnings` has one line for each key that was renamed or removed since the recipe was written.
    """

    recipe: Recipe
    path: Path
    text: str
    sha256: str
    sets: tuple[str, ...]
    document: Document
    warnings: tuple[str, ...] = ()

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
    recipe, warnings = _checked(document)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return LoadedRecipe(recipe, path, text, sha256, tuple(sets), document, warnings)


def _checked(document: Document) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe in a document, and a warning for each old key in it."""
    old_keys: list[OldKey] = []
    try:
        recipe = Recipe.model_validate(document.values, context=old_keys)
    except ValidationError as error:
        if _drop_overridden(document, old_keys):
            return _checked(document)
        what = "\n".join(sentences(error, Recipe, document, old_keys))
        raise DcclipError(what, "see what a recipe may hold with: dcclip recipe schema") from None
    return recipe, tuple(dict.fromkeys(_warning(document, one) for one in old_keys))


def _drop_overridden(document: Document, old_keys: list[OldKey]) -> bool:
    """Drop a key of the file that `--set` gives by its other name; whether there was one."""
    dropped = False
    for one in old_keys:
        if one.new in one.mapping and one.key in one.mapping:
            at = document.location_of(one.mapping)
            by_set = [key for key in (one.key, one.new) if document.place((*at, key)).startswith("--set ")]
            if len(by_set) == 1:
                del one.mapping[one.new if by_set == [one.key] else one.key]
                dropped = True
    return dropped


def _warning(document: Document, old: OldKey) -> str:
    at = document.location_of(old.mapping)
    key, new = (".".join(map(str, (*at, name))) for name in (old.key, old.new))
    change = f"is now {new}" if old.new else "is no longer an option and is ignored"
    return f"{document.place((*at, old.key))}: {key} {change}"


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that `load` reads back to an equal recipe."""
    values = {key: value for key, value in recipe.model_dump(mode="json", by_alias=True).items() if value is not None}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
