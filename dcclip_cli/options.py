"""The base class of everything that stands in a recipe."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A recipe section: unknown keys are errors, defaults are checked like given values, nothing changes later."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)
