"""Stage 2: both towers together, image against caption in each language (DC-CLIP stage 2; symmetric InfoNCE, CLIP)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dcclip_cli.data.options import DataOptions, Source
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.run_dir import TrainResult
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.contrastive import ContrastOptions, TaskLoss
from dcclip_cli.train.options import MOST_PER_STEP, StageContext, TrainOptions


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
    from dcclip_cli.data.samplers import StageData
    from dcclip_cli.train.stage import StageSetup, train_stage

    data = StageData(
        used_data(context.data, options),
        options.batch_size,
        options.images_per_step,
        options.texts_per_step,
        options.distinct_captions,
    )
    task = TaskLoss(**{name: getattr(options, name) for name in ContrastOptions.model_fields})
    setup = StageSetup(
        "align",
        (task, *options.losses),
        data,
        _start(options, context),
        caption_ids=True,
        lock="image" if _keeps_images(options, context) else options.lock,
        max_logit_scale=options.max_logit_scale,
        half=options.half,
    )
    return train_stage(setup, options, context)


def _start(options: AlignOptions, context: StageContext) -> Path | None:
    """The model directory to start from, None for a new student. Raises DcclipError where there is neither."""
    if options.start == "scratch":
        if context.student is None:
            raise DcclipError("align starts from scratch, but the recipe has no student", "add a student section")
        return None
    start = context.run.model("distill") if options.start == "distill" else Path(options.start)
    if not start.is_dir():
        what = Message("align starts from {}, which does not exist", start)
        raise DcclipError(what, "run stage 1 first: dcclip distill RECIPE; or set align.start: scratch")
    return start


def _keeps_images(options: AlignOptions, context: StageContext) -> bool:
    student = context.student if options.start in ("distill", "scratch") else None
    return student is not None and student.keeps_images


def used_data(data: DataOptions, options: AlignOptions) -> DataOptions:
    """The part of the recipe's data that align uses. Raises DcclipError for missing pairs and for data without use."""
    train = options.train or data.train
    if train is None:
        raise DcclipError("data has no pairs, and align matches images with captions", "set data.train")
    used: dict[str, str | tuple[str, ...] | None] = {"train": train}
    for name, wanted in (("images", options.images_per_step), ("texts", options.texts_per_step)):
        used[name] = getattr(data, name) if wanted else None
        if wanted and used[name] is None:
            raise DcclipError("align.{0}_per_step is {1}, but there is no data.{0}", "set data.{0}", name, wanted)
        if wanted and not options.losses:
            what = Message("align.{}_per_step is {}, but the contrastive loss uses pairs only", name, wanted)
            raise DcclipError(what, "add a distillation loss to align.losses, or remove the key")
    return data.model_copy(update=used)
