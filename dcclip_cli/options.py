"""Base class of recipe sections: old keys that were renamed or removed, and the options that decide a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Strict, TypeAdapter, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, to_jsonable_python

from dcclip_cli.errors import Message

T = TypeVar("T")
_NEUTRAL = "neutral"
# Neutral[int]: an int option that changes speed or what is shown, never the result.
Neutral = Annotated[T, _NEUTRAL]
PathOption = Annotated[Path, Strict(False)]  # which a text gives, as in YAML


@dataclass(frozen=True)
class Removed:
    """A key that is no longer an option: `advice` says what to do, `ignored` lists values that change nothing."""

    advice: str
    ignored: tuple[Any, ...] = (None,)


@dataclass(frozen=True)
class OldKey:
    """An old key met in a recipe: the mapping that contains it, and its new name (None: removed and ignored)."""

    mapping: dict[str, Any]
    key: str
    new: str | None


class Options(BaseModel):
    """A recipe section: unknown keys are errors, defaults are checked like given values, nothing changes later.

    Values have exactly the type of their field: no true or '1' for 1, and numbers are finite. An option that is a path
    is a `PathOption`, and every number has a lower and an upper bound.

    `renamed` maps old keys to their new names: both are accepted. `removed` lists keys that are accepted only with a
    value that means what the program does anyway. Validate with a list as context to receive an `OldKey` for each use.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, frozen=True)
    renamed: ClassVar[dict[str, str]] = {}
    removed: ClassVar[dict[str, Removed]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_old_keys(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        current, mistakes = {key: cls._sequence(key, value) for key, value in values.items()}, []
        for key in values:
            if key in cls.renamed:
                new = cls.renamed[key]
                if new in values:
                    what = Message("is the old name of {new}, which is given too: remove one of them", new=new)
                    mistakes.append((key, what))
                current[new] = current.pop(key)
            elif key in cls.removed:
                new = None
                if values[key] not in cls.removed[key].ignored:
                    what = Message("is no longer an option: {advice}", advice=cls.removed[key].advice)
                    mistakes.append((key, what))
                del current[key]
            else:
                continue
            if isinstance(info.context, list):
                info.context.append(OldKey(values, str(key), new))
        if mistakes:
            kinds = [(key, PydanticCustomError("old_key", "{text}", {"text": text})) for key, text in mistakes]
            errors = [InitErrorDetails(type=kind, loc=(key,), input=values[key]) for key, kind in kinds]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return current

    @classmethod
    def _sequence(cls, key: str, value: Any) -> Any:
        """A list as the tuple that a field wants, which strict validation would refuse."""
        field = cls.model_fields.get(key)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        if isinstance(value, dict) and any(get_origin(kind) is dict for kind in kinds):
            return {name: _as_tuples(one) for name, one in value.items()}
        return value if field and get_origin(field.annotation) is list else _as_tuples(value)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def neutral_keys(kind: type[BaseModel]) -> list[str]:
    """The names of a section's `Neutral` fields."""
    return [name for name, field in kind.model_fields.items() if _NEUTRAL in field.metadata]


def decisive(options: Any) -> Any:
    """The options that decide a result, as JSON: everything but the `Neutral` fields, at any depth."""
    if isinstance(options, BaseModel):
        return {
            field.alias or name: decisive(getattr(options, name))
            for name, field in type(options).model_fields.items()
            if _NEUTRAL not in field.metadata
        }
    if isinstance(options, dict):
        return {str(key): decisive(value) for key, value in options.items()}
    return [decisive(one) for one in options] if isinstance(options, list | tuple) else to_jsonable_python(options)


def decisive_before(kind: Any, values: Any) -> Any:
    """`decisive` of options of type `kind` as an older version wrote them; `values` themselves if invalid by now."""
    try:
        return decisive(TypeAdapter(kind).validate_python(values))
    except ValidationError:
        return values
