"""Loading of recipes: overrides, validation, errors with file and line; the record of a recipe in
its run directory.
"""

import copy
import difflib
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.extensions import without_importing
from dcclip_cli.core.files import atomic_write
from dcclip_cli.core.options import decisive
from dcclip_cli.core.run_dir import RESOLVED, STAGES, StageName, has_product
from dcclip_cli.core.versions import versions
from dcclip_cli.data.remote import shown
from dcclip_cli.recipe.schema import Recipe
from dcclip_cli.recipe.yaml import (
    ARGUMENTS,
    KEYS_HINT,
    MAX_BYTES,
    Document,
    Location,
    anchored,
    read,
    walk,
)

_LONGEST = 80  # characters of a value, or of a part of a key, in a message
VERBATIM = "recipe.yaml"  # in a run directory, next to RESOLVED
RecipeSource = str | os.PathLike[str] | Mapping[str, Any] | Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and its source: `text` is the file verbatim, `sha256` that of its bytes in UTF-8."""

    recipe: Recipe
    path: Path
    text: str
    sha256: str
    sets: tuple[str, ...]
    document: Document

    def line(self, at: Location, what: str) -> str:
        """What is wrong with a value, after its place and key: `recipe.yaml:7: data.train: ...`."""
        return Message("{}: {}: {}", self.document.place(at), ".".join(map(str, at)), what)

    def missing_files(self) -> dict[Location, str]:
        """One line `place: key: PATH does not exist` for each path in the recipe that leads
        nowhere.
        """
        paths = (
            (at, value)
            for at, value in walk(self.document.values)
            if isinstance(value, str) and value[:1] == "/"
        )
        return {
            at: self.line(at, Message("{} does not exist", value))
            for at, value in paths
            if not Path(value).exists()
            and not (glob.has_magic(value) and glob.glob(value, recursive=True))
        }


def load(
    source: RecipeSource, sets: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> LoadedRecipe:
    """The recipe in a YAML file, a mapping or a Recipe, with overrides applied.

    `sets` are overrides as text (`distill.epochs=3`), `values` as Python values by dotted key; a
    mapping among them changes only the keys in it. Raises DcclipError whose `what` has one line
    per mistake: `file:line: key: what is wrong`.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        text, document = read(path)
    else:
        path = Path("RECIPE")
        python_values = (
            _values(source, exclude_unset=True) if isinstance(source, Recipe) else source
        )
        document = Document(anchored(python_values, Path.cwd()), {(): ARGUMENTS})
        text = _yaml(document.values)
    names = [stage.name for stage in STAGES]
    for expression in sets:
        stage, dot, _ = expression.partition("=")[0].partition(".")
        if dot and stage in names and document.values.get(stage) is None:
            present = ", ".join(
                name for name in names if document.values.get(name) is not None
            ) or Message("none")
            hint = Message(
                "set a key of a listed stage, or add the missing stage: --set '{}={{KEY: VALUE}}'",
                stage,
            )
            problem = Message(
                "--set {}: the recipe has no stage {} (stages: {})", expression, stage, present
            )
            raise DcclipError(problem, hint)
        document.override(expression)
    for key, value in (values or {}).items():
        document.set(key, value)
    recipe = _validated(document)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    overrides = (
        *sets,
        *(f"{key}={json.dumps(value, default=str)}" for key, value in (values or {}).items()),
    )
    return LoadedRecipe(recipe, path, text, sha256, overrides, document)


def varied(loaded: LoadedRecipe, variant: str, seed: int) -> LoadedRecipe:
    """The recipe of one of its variants, "" for the recipe without them, with a seed."""
    document = Document(copy.deepcopy(loaded.document.values), dict(loaded.document.places))
    changes = (document.values.pop("variants", None) or {}).get(variant, {})
    for key, value in changes.items():
        document.set(key, value, loaded.document.place(("variants", variant, key)))
    document.set("seed", seed)
    sets = (*loaded.sets, *([f"variants.{variant}"] if variant else []), f"seed={seed}")
    return replace(loaded, recipe=_validated(document), sets=sets, document=document)


def _validated(document: Document) -> Recipe:
    try:
        return Recipe.model_validate(document.values)
    except ValidationError as error:
        problem = joined("\n", sentences(error, Recipe, document))
        unknown = any(
            mistake["type"] == "extra_forbidden" for mistake in error.errors(include_url=False)
        )
        hint = Message("list the allowed values with: dcclip recipe schema")
        raise DcclipError(problem, KEYS_HINT if unknown else hint) from None


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that `load` reads back to an equal
    recipe.
    """
    return _yaml(_values(recipe))


def _values(recipe: Recipe, exclude_unset: bool = False) -> dict[str, Any]:
    values = recipe.model_dump(mode="json", by_alias=True, exclude_unset=exclude_unset)
    return {key: value for key, value in values.items() if value is not None}


def _yaml(values: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text


def check_finished(recipe: Recipe, folder: Path, again: Iterable[StageName]) -> None:
    """Raise DcclipError where a finished stage's recipe differs; evaluations and exports compare
    when they run.
    """
    if (folder / RESOLVED).is_file():
        with without_importing():  # the folder may be a stranger's
            before = _validated(read(folder / RESOLVED)[1])
        for stage in STAGES:
            if stage.name not in (*again, "eval", "export") and has_product(folder, stage.name):
                names = stage.made_from
                old, new = (
                    {
                        at: value
                        for name in names
                        for at, value in walk(decisive(getattr(source, name)), (name,))
                    }
                    for source in (before, recipe)
                )
                changed = [
                    at for at in {**old, **new} if _shown(old.get(at)) != _shown(new.get(at))
                ]
                if changed:
                    values = (
                        (".".join(map(str, at)), _shown(old.get(at)), _shown(new.get(at)))
                        for at in changed[:3]
                    )
                    changes = joined(
                        ", ", (Message("{} was {} and is now {}", *value) for value in values)
                    )
                    problem = Message(
                        "{} was created with a different recipe: {}", folder / stage.name, changes
                    )
                    hint = Message(
                        "create it again with --fresh, or keep both with another name or --out DIR"
                    )
                    raise DcclipError(problem, hint)


def record(loaded: LoadedRecipe, folder: Path) -> None:
    """Write the recipe into its run directory, verbatim and resolved."""
    atomic_write(folder / VERBATIM, loaded.text)
    head = [
        f"# {loaded.path}, sha256 {loaded.sha256}",
        *(f"# --set {expression}" for expression in loaded.sets),
    ]
    head.append("# " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    atomic_write(folder / RESOLVED, "\n".join([*head, resolved_yaml(loaded.recipe)]))


def _shown(value: Any) -> Any:
    """A URL without its signature, which may be another each time."""
    return shown(value) if isinstance(value, str) else value


def sentences(error: ValidationError, model: type[BaseModel], document: Document) -> list[str]:
    """One line `place: key: what is wrong` per mistake, in the order of the recipe, with keys as
    written.
    """
    complaints: dict[tuple[str, str, str], dict[str, None]] = {}
    mistakes = error.errors(include_url=False)
    parents = {
        mistake["loc"][:depth] for mistake in mistakes for depth in range(len(mistake["loc"]))
    }
    for details in mistakes:
        if details["type"] == "too_short" and details["loc"] in parents:
            continue  # too short only because some of its items are wrong
        location: list[
            str | int
        ] = []  # pydantic's without the names of union members, which are not in the recipe
        values: Any = document.values
        for number, step in enumerate(details["loc"]):
            if step in (
                range(len(values))
                if isinstance(values, list)
                else values
                if isinstance(values, dict)
                else ()
            ):
                values = values[step]
                location.append(step)
            elif details["type"] in ("missing", "lacking") and number == len(details["loc"]) - 1:
                location.append(step)
        if details["type"] == "union_tag_invalid":
            location.append(details["ctx"]["discriminator"].strip("'"))
        key = ".".join(_short(str(step)) for step in location)
        value = details["input"]
        hidden = details["type"] in ("extra_forbidden", "value_error")
        is_shown = isinstance(value, str | int | float) and not hidden
        got = Message(" (got {})", _short(repr(value))) if is_shown else ""
        messages = complaints.setdefault(
            (document.place(tuple(location)), f"{key}: " if key else "", got), {}
        )
        messages[_message(details, model)] = None
    lines = {
        place: re.fullmatch(r"(?!--set).*:(\d+)", place) for place, _, _ in complaints
    }  # those of --set come last
    ordered = sorted(
        complaints.items(),
        key=lambda item: int(line[1]) if (line := lines[item[0][0]]) else MAX_BYTES,
    )
    return [
        Message(
            "{}: {}{}{}",
            place,
            key,
            reduce(lambda left, right: Message("{} or {}", left, right), messages),
            got,
        )
        for (place, key, got), messages in ordered
    ]


def _nearest(word: str, right: Iterable[str]) -> str:
    """`, did you mean 'right'?`, or nothing if no right word is near."""
    near = difflib.get_close_matches(word[:_LONGEST], list(right), 1)
    return Message(", did you mean '{}'?", near[0]) if near else ""


# What is wrong, by pydantic's name of it; a field is the bound that the value does not keep.
_KINDS = {
    "missing": Message("missing"),
    "int_type": Message("expected an integer"),
    "float_type": Message("expected a number"),
    "bool_type": Message("expected true or false"),
    "string_type": Message("expected text"),
    "tuple_type": Message("expected a list"),
    "model_type": Message("expected a section of keys and values"),
    "dict_type": Message("expected a section of keys and values"),
    "greater_than": Message("input should be greater than {}"),
    "greater_than_equal": Message("input should be greater than or equal to {}"),
    "less_than": Message("input should be less than {}"),
    "less_than_equal": Message("input should be less than or equal to {}"),
}


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    context = details.get("ctx", {})
    kind = details["type"]
    text = details["msg"]
    if kind in _KINDS:
        return Message(_KINDS[kind], text.rpartition(" ")[2])
    match kind:
        case "extra_forbidden":
            *parents, word = details["loc"]
            return Message(
                "unknown key{}",
                _nearest(str(word), [name for name, _ in _fields_at(model, parents)]),
            )
        case "union_tag_invalid":
            tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
            near = _nearest(context["tag"], tags)
            return Message("'{}' is not one of {}{}", _short(context["tag"]), ", ".join(tags), near)
        case "union_tag_not_found":
            key = context["discriminator"].strip("'")
            tags = [
                tag
                for name, field in _fields_at(model, details["loc"])
                if name == key
                for tag in _literals(field)
            ]
            return Message("needs {}: {}", key, ", ".join(sorted(tags)))
        case "lacking":
            return Message("needs a section {}", text)
        case "value_error":
            return context["error"].args[0] if context["error"].args else str(context["error"])
        case "literal_error":
            return Message("input should be {expected}", **context)
    return text[:1].lower() + text[1:]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _fields_at(
    model: type[BaseModel], location: Iterable[str | int]
) -> list[tuple[str, FieldInfo]]:
    """The keys that `location`, a location as pydantic gives it, may contain."""
    models = {model}
    for step in location:
        if not isinstance(step, int):
            fields = [
                field
                for outer in models
                for name, field in outer.model_fields.items()
                if step == name
            ]
            below = {inner for field in fields for inner in _models(field.annotation)}
            # What a union calls a model: its class name or the values of its Literal fields
            # (`kind`).
            tags = {
                member: {member.__name__}.union(*map(_literals, member.model_fields.values()))
                for member in models
            }
            models = below or {member for member in models if step in tags[member]} or models
    return [
        (field.alias or name, field)
        for member in models
        for name, field in member.model_fields.items()
    ]


def _models(annotation: Any) -> set[type[BaseModel]]:
    """Every model that an annotation allows, also inside lists, unions and Annotated."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {model for argument in get_args(annotation) for model in _models(argument)}


def _literals(field: FieldInfo) -> list[str]:
    return (
        [str(value) for value in get_args(field.annotation)]
        if get_origin(field.annotation) is Literal
        else []
    )
