"""Stage 2: both towers together, image against caption in each language (DC-CLIP stage 2; symmetric InfoNCE, CLIP)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from dcclip_cli.data.options import Source
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.run_dir import TrainResult
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.contrastive import ContrastOptions, TaskLoss
from dcclip_cli.train.options import MOST_PER_STEP, StageContext, StageSetup, TrainOptions, sizes_per_step


class AlignOptions(ContrastOptions, TrainOptions):
    """Stage 2 of a recipe, or the training of a model from scratch."""

    losses: tuple[DistillLoss, ...] = Field(
        (), description="Distillation losses in addition to the contrastive loss, to retain what stage 1 learned"
    )
    train: Source | None = Field(None, description="Pairs for this stage only; default: data.train")
    images_per_step: int | None = Field(
        None,
        ge=1,
        le=MOST_PER_STEP,
        description="Images of data.images per step in addition to batch_size pairs, for `losses`; default: none",
    )
    texts_per_step: int | None = Field(
        None,
        ge=1,
        le=MOST_PER_STEP,
        description="Texts of data.texts per step in addition to batch_size pairs, for `losses`; default: none",
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
    distinct_captions: bool = Field(True, description="Keep pairs with the same first caption out of the same batch")
    half: bool = Field(False, description="Save the model's weights as fp16")


def align(options: AlignOptions, context: StageContext) -> TrainResult:
    """The model directory `align/model` of a student whose towers were trained together; resumes from a checkpoint.

    Raises DcclipError for data or a starting model that cannot be loaded, and for a checkpoint of another recipe.
    """
    if finished := context.finished("align"):
        return finished
    from dcclip_cli.train.stage import train_stage

    context = used(context, options)
    return train_stage(set_up(options, context), context)


def set_up(options: AlignOptions, context: StageContext) -> StageSetup:
    """What stage 2 trains, in a context that `used` returned."""
    task = TaskLoss(**{name: getattr(options, name) for name in ContrastOptions.model_fields})
    keeps_images = context.student is not None and context.student.keeps_images
    return StageSetup(
        "align",
        options,
        (task, *options.losses),
        sizes_per_step(options, context.data, options.images_per_step or 0, options.texts_per_step or 0),
        task=True,
        distinct_captions=options.distinct_captions,
        lock="image" if keeps_images and options.start in ("distill", "scratch") else options.lock,
        max_logit_scale=options.max_logit_scale,
        half=options.half,
    )


def used(context: StageContext, options: AlignOptions) -> StageContext:
    """The context with the pairs and the starting model of align.

    Raises DcclipError for missing pairs, data without use, and a new student that the recipe does not have.
    """
    train = options.train or context.data.train
    if train is None:
        raise DcclipError("data has no pairs, and align matches images with captions", "set data.train")
    if options.train and context.data.hold_out:
        what = Message("align.train is set, and data.hold_out keeps pairs out of data.train only")
        raise DcclipError(what, "set data.validation in place of data.hold_out")
    for name, wanted in (("images", options.images_per_step), ("texts", options.texts_per_step)):
        if wanted and getattr(context.data, name) is None:
            raise DcclipError("align.{0}_per_step is {1}, but there is no data.{0}", "set data.{0}", name, wanted)
        if wanted and not options.losses:
            what = Message("align.{}_per_step is {}, but the contrastive loss uses pairs only", name, wanted)
            raise DcclipError(what, "add a distillation loss to align.losses, or remove the key")
    if set_up(options, context).lock == "image" and options.lock == "text":
        raise DcclipError("align.lock is text, and student.image: teacher locks the image tower", "remove align.lock")
    start = {"distill": context.run.model("distill"), "scratch": None}.get(options.start, Path(options.start))
    if start is None and context.student is None:
        raise DcclipError("align starts from scratch, but the recipe has no student", "add a student section")
    return replace(context, data=context.data.model_copy(update={"train": train}), start=start)
