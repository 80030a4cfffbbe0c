"""Base class of recipe sections, with keys of older recipes that were renamed or removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


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

    `renamed` maps old keys to their new names: both are accepted. `removed` lists keys that are accepted only with a
    value that means what the program does anyway. Validate with a list as context to receive an `OldKey` for each use.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)
    renamed: ClassVar[dict[str, str]] = {}
    removed: ClassVar[dict[str, Removed]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_old_keys(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        current, mistakes = dict(values), []
        for key in values:
            if key in cls.renamed:
                new = cls.renamed[key]
                if new in values:
                    mistakes.append((key, f"is the old name of {new}, which is given too: remove one of them"))
                current[new] = current.pop(key)
            elif key in cls.removed:
                new = None
                if values[key] not in cls.removed[key].ignored:
                    mistakes.append((key, f"is no longer an option: {cls.removed[key].advice}"))
                del current[key]
            else:
                continue
            if isinstance(info.context, list):
                info.context.append(OldKey(values, str(key), new))
        if mistakes:
            errors = [_old_key_error(key, text, values[key]) for key, text in mistakes]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return current


def _old_key_error(key: str, text: str, value: Any) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("old_key", "{text}", {"text": text}), loc=(key,), input=value)
