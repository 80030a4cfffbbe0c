"""Schema of a recipe: shared settings and a section per stage."""

import re
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from dcclip_cli.core.errors import Message
from dcclip_cli.core.options import Neutral, Options
from dcclip_cli.core.run_dir import STAGES, SWEEP_FILES, StageName
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.data.options import COLLECTED, DataOptions
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.exporters.export import ExportOptions
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.train.metrics_log import TrackerName
from dcclip_cli.train.options import AlignOptions, DistillOptions


class Recipe(Options):
    """A recipe is one YAML file: settings that stages share, then one section per stage."""

    format: Literal[1] = Field(1, description="Version of the recipe format")
    name: str = Field(max_length=80, description="Name of the model; its files are in runs/NAME/")
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of all random choices; the same seed gives the same weights",
    )
    track: Neutral[tuple[TrackerName, ...]] = Field(
        ("tensorboard",),
        description="Experiment trackers of distill and align, all offline; metrics.jsonl is "
        "always written",
    )
    teacher: Teacher | None = Field(
        None,
        description="The teacher: a section, or a model reference as for --model; required by distill",
    )
    student: StudentOptions | None = Field(None, description="The small model to train")
    data: DataOptions | None = Field(None, description="The image-caption pairs to train on")
    collect: CollectOptions | None = Field(None, description="Stage: filter raw pairs into shards")
    distill: DistillOptions | None = Field(
        None, description="Stage 1: train the student on the teacher's features"
    )
    align: AlignOptions | None = Field(
        None, description="Stage 2: train both towers contrastively on images and captions"
    )
    eval: EvalOptions | None = Field(None, description="Stage: evaluate the models on test sets")
    export: ExportOptions | None = Field(
        None, description="Stage: export a bundle that runs without torch"
    )
    variants: Neutral[dict[str, dict[str, Any]] | None] = Field(
        None,
        description="Variants of this recipe, which `dcclip run` runs and compares instead of "
        "the recipe itself; "
        "each has a name and the keys that differ: {plain: {align.losses: []}, base: {}}",
    )

    @field_validator("variants")
    @classmethod
    def _have_names_of_folders(cls, variants: dict[str, Any] | None) -> dict[str, Any] | None:
        names = dict[str, str]()
        for name in variants or ():
            cls._names_a_folder(name)
            if name.casefold() in SWEEP_FILES:
                raise ValueError(
                    Message(
                        "'{}' is the name of a file that the command writes: choose another", name
                    )
                )
            if names.setdefault(name.casefold(), name) != name:
                raise ValueError(
                    Message(
                        "'{}' and '{}' differ only in upper and lower case",
                        names[name.casefold()],
                        name,
                    )
                )
        return variants

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            if "/" in name:
                raise ValueError(
                    Message("'{}' is a path: use a plain name of letters, digits, _ - and .", name)
                )
            raise ValueError(
                Message("'{}' is not a valid folder name: use letters, digits, _ - and .", name)
            )
        return name

    @model_validator(mode="after")
    def _has_what_its_stages_need(self) -> Self:
        needed: dict[tuple[str, ...], list[str]] = {}
        if self.distill is not None:
            needed["distill",] = ["teacher", "student", "data"]
        if self.align is not None:
            needed["align",] = ["data"]
            needed["align", "start"] = {"scratch": ["student"], "distill": ["distill"]}.get(
                self.align.start, []
            )
            if any(loss.needs_teacher for loss in self.align.losses):
                needed["align", "losses"] = ["teacher"]
        if self.data is not None and self.data.train == COLLECTED:
            needed["data", "train"] = ["collect"]
        lacking = [
            InitErrorDetails(
                type=PydanticCustomError("lacking", "{names}", {"names": names}),
                loc=location,
                input=None,
            )
            for location, sections in needed.items()
            if (
                names := ", ".join(
                    section for section in sections if getattr(self, section) is None
                )
            )
        ]
        if lacking:
            raise ValidationError.from_exception_data("Recipe", lacking)
        return self

    @property
    def stages(self) -> tuple[StageName, ...]:
        return tuple(stage.name for stage in STAGES if getattr(self, stage.name) is not None)
