"""Base class of recipe sections, and the options that decide a result."""

from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import to_jsonable_python

T = TypeVar("T")
NEUTRAL = "neutral"
# Neutral[int]: an int option that changes speed or what is shown, never the result.
Neutral = Annotated[T, NEUTRAL]
PathOption = Annotated[Path, Strict(False)]  # which a text gives, as in YAML
Dims = Annotated[int, Field(ge=8, le=8192)]  # of embeddings


class Options(BaseModel):
    """A recipe section: unknown keys are errors, defaults are checked like given values, nothing
    changes later.

    Values have exactly the type of their field: no true or '1' for 1, and numbers are finite. An
    option that is a path is a `PathOption`, and every number has a lower and an upper bound.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, frozen=True
    )

    @model_validator(mode="before")
    @classmethod
    def _sequences(cls, values: Any) -> Any:
        """Lists as the tuples that fields want, which strict validation would refuse."""
        if not isinstance(values, dict):
            return values
        converted = dict(values)
        for key, value in values.items():
            field = cls.model_fields.get(key)
            kinds = [field.annotation, *get_args(field.annotation)] if field else []
            if isinstance(value, dict) and any(get_origin(kind) is dict for kind in kinds):
                converted[key] = {name: _as_tuples(item) for name, item in value.items()}
            elif not (field and get_origin(field.annotation) is list):
                converted[key] = _as_tuples(value)
        return converted


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def decisive(options: Any) -> Any:
    """The options that decide a result, as JSON: everything but the `Neutral` fields, at any
    depth.
    """
    if isinstance(options, BaseModel):
        return decisive(options.model_extra or {}) | {
            field.alias or name: decisive(getattr(options, name))
            for name, field in type(options).model_fields.items()
            if NEUTRAL not in field.metadata
        }
    if isinstance(options, dict):
        return {str(key): decisive(value) for key, value in options.items()}
    return (
        [decisive(item) for item in options]
        if isinstance(options, list | tuple)
        else to_jsonable_python(options)
    )
