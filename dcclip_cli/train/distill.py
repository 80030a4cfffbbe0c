"""Stage 1: the student's two towers learn the frozen teacher's features (DC-CLIP, arXiv 2404.11249)."""

from __future__ import annotations

from pydantic import Field

from dcclip_cli.run_dir import TrainResult
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import MOST_PER_STEP, StageContext, StageSetup, TrainOptions, sizes_per_step


class DistillOptions(TrainOptions):
    """Stage 1 of a recipe."""

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


def distill(options: DistillOptions, context: StageContext) -> TrainResult:
    """The model directory `distill/model` of a student trained on the teacher's features; resumes from a checkpoint.

    Needs a teacher and a student in `context`. Raises DcclipError for data, a teacher or a student that cannot be
    loaded, and for a checkpoint of another recipe.
    """
    if finished := context.finished("distill"):
        return finished
    from dcclip_cli.train.stage import train_stage

    return train_stage(set_up(options, context), context)


def set_up(options: DistillOptions, context: StageContext) -> StageSetup:
    """What stage 1 trains."""
    sizes = sizes_per_step(options, context.data, options.images_per_step, options.texts_per_step)
    keeps_images = context.student is not None and context.student.keeps_images
    return StageSetup("distill", options, options.losses, sizes, lock="image" if keeps_images else None)
