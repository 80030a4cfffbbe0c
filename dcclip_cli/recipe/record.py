"""Which recipe made a run: the two files that say so, and the check that a finished stage still agrees with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from dcclip_cli.curation import options as collect
from dcclip_cli.errors import DcclipError
from dcclip_cli.recipe.document import Location, read, walk
from dcclip_cli.recipe.load import LoadedRecipe, resolved_yaml
from dcclip_cli.recipe.schema import Recipe, Stage
from dcclip_cli.train import options as train
from dcclip_cli.versions import versions

VERBATIM, RESOLVED = "recipe.yaml", "resolved.yaml"
_MADE_FROM: dict[Stage, set[str]] = {
    "collect": {"collect"},
    "distill": {"teacher", "student", "data", "seed", "distill"},
    "align": {"teacher", "student", "data", "seed", "align"},
}
# Keys that change how long a stage takes and what it shows, but not what it makes.
_NEUTRAL = collect.NEUTRAL | train.NEUTRAL


def record(loaded: LoadedRecipe, folder: Path, finished: Iterable[Stage]) -> None:
    """Write the recipe into its run's folder, verbatim and resolved.

    Raises DcclipError where a stage in `finished` was made from a recipe that differs in what made it.
    """
    resolved = resolved_yaml(loaded.recipe)
    stages = [stage for stage in finished if stage in _MADE_FROM]
    if stages and (folder / RESOLVED).is_file():
        before = dict(walk(_in_current_keys(read(folder / RESOLVED)[1].values)))
        now = dict(walk(loaded.recipe.model_dump(mode="json", by_alias=True)))
        for stage in stages:
            changes = [_change(at, before, now) for at in {**before, **now} if _decides(stage, at, before, now)]
            if changes:
                raise DcclipError(
                    f"{folder / stage} was made from a recipe that differs: {', '.join(changes[:3])}",
                    "do it again with --fresh, or keep both with another name or --out DIR",
                )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VERBATIM).write_text(loaded.text, encoding="utf-8")
    head = [f"# {loaded.path}, sha256 {loaded.sha256}", *(f"# --set {expression}" for expression in loaded.sets)]
    head.append("# " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    (folder / RESOLVED).write_text("\n".join([*head, resolved]), encoding="utf-8")


def _in_current_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The resolved recipe of an older version with keys of today; a section that is no longer valid as it is."""
    current = dict(values)
    for name, field in Recipe.model_fields.items():
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, field.annotation))
        try:
            section = adapter.validate_python(values.get(name))
        except ValidationError:
            continue
        current[name] = adapter.dump_python(section, mode="json", by_alias=True)
    return current


def _decides(stage: Stage, at: Location, before: dict[Location, Any], now: dict[Location, Any]) -> bool:
    return before.get(at) != now.get(at) and at[0] in _MADE_FROM[stage] and not _NEUTRAL & set(at)


def _change(at: Location, before: dict[Location, Any], now: dict[Location, Any]) -> str:
    return f"{'.'.join(map(str, at))} was {before.get(at)}, is {now.get(at)}"
