"""Options of the two stages, and what differs between them.

Stage 1: the student's towers learn the frozen teacher's features (DC-CLIP, arXiv 2404.11249). Stage 2: both together,
image against caption in each language (DC-CLIP stage 2; symmetric InfoNCE, CLIP).
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from dcclip_cli.data.options import DataOptions, Source
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.base import Tower
from dcclip_cli.train.losses.contrastive import ContrastOptions, TaskLoss
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import MOST_PER_STEP, PerStep, TrainOptions


class DistillOptions(TrainOptions):
    """Stage 1 of a recipe."""

    stage: ClassVar[Literal["distill"]] = "distill"
    contrast: ClassVar[TaskLoss | None] = None  # between images and captions, in addition to `losses`
    distinct_captions: ClassVar[bool] = False
    max_logit_scale: ClassVar[float] = 100.0
    half: ClassVar[bool] = False

    losses: tuple[DistillLoss, ...] = Field(
        (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss()),
        min_length=1,
        description="Losses between student and teacher; their weighted sum is minimized",
    )
    images_per_step: int | None = Field(
        None,
        ge=0,
        le=MOST_PER_STEP,
        description="Images of data.images per step in addition to batch_size pairs, over all processes; default: "
        "batch_size; 0: none",
    )
    texts_per_step: int | None = Field(
        None,
        ge=0,
        le=MOST_PER_STEP,
        description="Texts of data.texts per step in addition to batch_size pairs, over all processes; default: "
        "batch_size; 0: none",
    )

    def start_folder(self, run: RunDir) -> None:
        """The model directory that the student is loaded from: it is a new one."""

    def locked(self, student: StudentOptions | None) -> Tower | None:
        """The tower that is not trained."""
        return "image" if student and student.keeps_images else None

    def stage_data(self, data: DataOptions, student: StudentOptions | None) -> DataOptions:
        return data


class AlignOptions(ContrastOptions, TrainOptions):
    """Stage 2 of a recipe, or the training of a model from scratch."""

    stage: ClassVar[Literal["align"]] = "align"

    losses: tuple[DistillLoss, ...] = Field(
        (), description="Distillation losses in addition to the contrastive loss, to retain what stage 1 learned"
    )
    train: Source | None = Field(None, description="Pairs for this stage only; default: data.train")
    images_per_step: PerStep | None = Field(
        None, description="Images of data.images per step in addition to batch_size pairs, for `losses`; default: none"
    )
    texts_per_step: PerStep | None = Field(
        None, description="Texts of data.texts per step in addition to batch_size pairs, for `losses`; default: none"
    )
    start: str = Field(
        "distill", description="Model to start from: `distill` (this recipe's stage 1), `scratch` or a model directory"
    )
    lock: Literal["image", "text"] | None = Field(
        None, description="Tower to freeze, including its batch norm statistics; null: none"
    )
    max_logit_scale: float = Field(
        100.0, gt=1, le=10_000, description="Upper bound of the learned 1 / temperature, as in CLIP"
    )
    distinct_captions: bool = Field(True, description="Never put two pairs with the same first caption in one batch")
    half: bool = Field(False, description="Save the model's weights as fp16")

    @property
    def contrast(self) -> TaskLoss:
        """The contrastive loss, in addition to `losses`."""
        return TaskLoss(**{name: getattr(self, name) for name in ContrastOptions.model_fields})

    def start_folder(self, run: RunDir) -> Path | None:
        """The model directory that the student is loaded from; None: it is a new one."""
        return {"distill": run.model("distill"), "scratch": None}.get(self.start, Path(self.start))

    def locked(self, student: StudentOptions | None) -> Tower | None:
        """The tower that is not trained."""
        return "image" if student and student.keeps_images and self.start in ("distill", "scratch") else self.lock

    def stage_data(self, data: DataOptions, student: StudentOptions | None) -> DataOptions:
        """The data of the stage: the recipe's, with the pairs that align trains on.

        Raises DcclipError for missing pairs, data without use, and a new student that the recipe does not have.
        """
        train = self.train or data.train
        if train is None:
            raise DcclipError("align needs image-caption pairs, but data has none", "set data.train")
        if self.train and data.hold_out:
            problem = Message("align.train is set, but data.hold_out takes pairs from data.train only")
            raise DcclipError(problem, "use data.validation instead of data.hold_out")
        for name, count in (("images", self.images_per_step), ("texts", self.texts_per_step)):
            if count and getattr(data, name) is None:
                raise DcclipError("align.{0}_per_step is {1}, but data.{0} is not set", "set data.{0}", name, count)
            if count and not self.losses:
                problem = Message("align.{}_per_step is {}, but the contrastive loss uses only pairs", name, count)
                raise DcclipError(problem, "add a distillation loss to align.losses, or remove the key")
        if self.lock == "text" and self.locked(student) == "image":
            problem = Message("align.lock is text, but student.image: teacher locks the image tower")
            raise DcclipError(problem, "remove align.lock")
        if self.start == "scratch" and student is None:
            raise DcclipError("align starts from scratch, but the recipe has no student", "add a student section")
        return data.model_copy(update={"train": train})
