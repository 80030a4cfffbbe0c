"""The recipe files of a run directory, and the check that its finished stages were made from the same recipe."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from dcclip_cli.errors import DcclipError
from dcclip_cli.options import decisive, decisive_before
from dcclip_cli.pipeline import STAGES, StageName
from dcclip_cli.recipe.document import Location, read, walk
from dcclip_cli.recipe.load import LoadedRecipe, resolved_yaml
from dcclip_cli.recipe.schema import Recipe
from dcclip_cli.versions import versions

VERBATIM, RESOLVED = "recipe.yaml", "resolved.yaml"


def record(loaded: LoadedRecipe, folder: Path, finished: Collection[StageName]) -> None:
    """Write the recipe into its run directory, verbatim and resolved.

    Raises DcclipError where a stage in `finished` was made from a recipe that differs in what decides its result.
    Evaluations and exports compare more than the recipe, when they run.
    """
    if (folder / RESOLVED).is_file():
        before = read(folder / RESOLVED)[1].values
        for stage in STAGES:
            if stage.name in finished and stage.name not in ("eval", "export"):
                _compare(folder / stage.name, before, loaded.recipe, stage.made_from)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VERBATIM).write_text(loaded.text, encoding="utf-8")
    head = [f"# {loaded.path}, sha256 {loaded.sha256}", *(f"# --set {expression}" for expression in loaded.sets)]
    head.append("# " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    (folder / RESOLVED).write_text("\n".join([*head, resolved_yaml(loaded.recipe)]), encoding="utf-8")


def _compare(product: Path, before: dict[str, Any], recipe: Recipe, sections: Iterable[str]) -> None:
    old: dict[Location, Any] = {}
    new: dict[Location, Any] = {}
    for name in sections:
        kind = Recipe.model_fields[name].annotation
        old |= walk(decisive_before(kind, before.get(name)), (name,))
        new |= walk(decisive(getattr(recipe, name)), (name,))
    changed = [at for at in {**old, **new} if old.get(at) != new.get(at)]
    if changed:
        changes = (f"{'.'.join(map(str, at))} was {old.get(at)}, is {new.get(at)}" for at in changed[:3])
        raise DcclipError(
            f"{product} was made from a recipe that differs: {', '.join(changes)}",
            "do it again with --fresh, or keep both with another name or --out DIR",
        )
