"""Validation errors of a recipe as sentences with file, line, key and the nearest valid word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dcclip_cli.options import OldKey
from dcclip_cli.recipe.yaml import MAX_BYTES, Document, Location


def sentences(
    error: ValidationError, model: type[BaseModel], document: Document, old_keys: Iterable[OldKey] = ()
) -> list[str]:
    """One line `place: key: what is wrong` per mistake, in the order of the recipe, with keys as written."""
    found: dict[tuple[str, str, str], list[str]] = {}
    mistakes = error.errors(include_url=False)
    for details in mistakes:
        if details["type"] == "too_short" and any(_is_within(other["loc"], details["loc"]) for other in mistakes):
            continue  # too short only because some of its items are wrong
        location = _in_document(details, document.values, list(old_keys))
        key = "".join(f"{step}." for step in location)[:-1]
        messages = found.setdefault((document.place(location), f"{key}: " if key else "", _got(details)), [])
        messages.append(_message(details, model))
    ordered = sorted(found.items(), key=lambda item: _line(item[0][0]))
    return [f"{place}: {key}{' or '.join(dict.fromkeys(said))}{got}" for (place, key, got), said in ordered]


def nearest(word: str, right: Iterable[str]) -> str:
    """`, did you mean 'right'?`, or nothing if no right word is near."""
    near = difflib.get_close_matches(word, list(right), 1)
    return f", did you mean '{near[0]}'?" if near else ""


def _line(place: str) -> int:
    """The line in a place, or beyond all lines for a `--set`."""
    number = place.rpartition(":")[2]
    return int(number) if number.isdecimal() and not place.startswith("--set") else MAX_BYTES


def _is_within(inner: tuple[str | int, ...], outer: tuple[str | int, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _in_document(details: ErrorDetails, values: Any, old_keys: list[OldKey]) -> Location:
    """pydantic's location without the names of union members, which are not in the recipe."""
    result: list[str | int] = []
    steps = details["loc"]
    for number, step in enumerate(steps):
        step = next((one.key for one in old_keys if one.mapping is values and one.new == step), step)
        if (step in values) if isinstance(values, dict) else (isinstance(values, list) and isinstance(step, int)):
            values = values[step]
            result.append(step)
        elif details["type"] in ("missing", "lacking") and number == len(steps) - 1:
            result.append(step)
    if details["type"] == "union_tag_invalid":
        result.append(details["ctx"]["discriminator"].strip("'"))
    return tuple(result)


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            *parents, word = details["loc"]
            right = {field.alias or name for name, field in _fields_at(model, parents)}
            return "unknown key" + nearest(str(word), right)
        case "missing":
            return "missing"
        case "union_tag_invalid":
            tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
            return f"'{context['tag']}' is none of {', '.join(tags)}" + nearest(context["tag"], tags)
        case "union_tag_not_found":
            key = context["discriminator"].strip("'")
            tags = [tag for name, field in _fields_at(model, details["loc"]) if name == key for tag in _literals(field)]
            return f"needs {key}: {', '.join(sorted(tags))}"
        case "value_error":
            return str(context["error"])
    return details["msg"][:1].lower() + details["msg"][1:]


def _got(details: ErrorDetails) -> str:
    value = details["input"]
    shown = isinstance(value, str | int | float) and details["type"] not in (
        "extra_forbidden",
        "value_error",
        "old_key",
    )
    return f" (got {value!r})" if shown else ""


def _fields_at(model: type[BaseModel], location: Iterable[str | int]) -> list[tuple[str, FieldInfo]]:
    """The keys that `location`, a location as pydantic gives it, may contain."""
    here = {model}
    for step in location:
        if isinstance(step, int):
            continue
        below = {inner for outer in here for name, field in _fields(outer) if step == name for inner in _models(field)}
        here = below or {member for member in here if step in _tags(member)} or here
    return [named for member in here for named in _fields(member)]


def _fields(model: type[BaseModel]) -> Iterable[tuple[str, FieldInfo]]:
    return model.model_fields.items()


def _models(field: Any) -> set[type[BaseModel]]:
    """Every model that an annotation allows, also inside lists, unions and Annotated."""
    annotation = getattr(field, "annotation", field)
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {model for argument in get_args(annotation) for model in _models(argument)}


def _tags(model: type[BaseModel]) -> set[str]:
    """What a union may call `model`: its class name or the values of its Literal fields (`kind`)."""
    return {model.__name__, *(tag for _, field in _fields(model) for tag in _literals(field))}


def _literals(field: FieldInfo) -> list[str]:
    return [str(value) for value in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
