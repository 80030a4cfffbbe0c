"""Stage 1: the student's two towers learn the frozen teacher's features (DC-CLIP, arXiv 2404.11249)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dcclip_cli.data.options import DataOptions
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.run_dir import RunDir
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.base import Tower
from dcclip_cli.train.losses.contrastive import TaskLoss
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import MOST_PER_STEP, TrainOptions


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
