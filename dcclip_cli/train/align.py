"""Stage 2: both towers together, image against caption in each language (DC-CLIP stage 2; symmetric InfoNCE, CLIP)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.options import decisive
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.run_dir import RunDir, TrainResult
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.contrastive import Contrast, TaskLoss
from dcclip_cli.train.options import TeachingOptions


class AlignOptions(TeachingOptions):
    """Stage 2 of a recipe, or the training of a model from scratch."""

    loss: Contrast = Field(
        "clip", description="clip: symmetric InfoNCE, averaged over the languages; siglip: a sigmoid for each pair"
    )
    losses: tuple[DistillLoss, ...] = Field(
        (), description="Distillation beside the contrast, so that stage 2 does not forget stage 1"
    )
    train: str | None = Field(None, description="Pairs for this stage alone; default: data.train")
    images_per_step: int | None = Field(
        None, ge=1, description="Pictures of data.images beside batch_size pairs, for `losses`; default: none"
    )
    texts_per_step: int | None = Field(
        None, ge=1, description="Lines of data.texts beside batch_size pairs, for `losses`; default: none"
    )
    start: str = Field("distill", description="`distill` (this recipe's stage 1), `scratch`, or a model directory")
    lock: Literal["image", "text"] | None = Field(None, description="A tower that stays as it is, batch norms included")
    cross_lingual: float = Field(0.0, ge=0, description="Weight of the contrast between the two captions of one image")
    cosine: float = Field(
        0.0, ge=0, description="Weight of 1 - cosine of image and caption, which makes captions meet embeddings"
    )
    other_weight: float = Field(1.0, ge=0, description="Weight of the captions that captions.second_caption adds")
    max_logit_scale: float = Field(
        100.0, gt=1, description="The learnable 1 / temperature is kept below this, as CLIP does"
    )
    distinct_captions: bool = Field(True, description="No two pairs with the same first caption in one batch")
    half: bool = Field(False, description="Store the model's weights as fp16")


def align(
    *,
    options: AlignOptions,
    student: StudentOptions | None,
    teacher: Teacher | None,
    data: DataOptions,
    seed: int,
    run: RunDir,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the two towers together and leave `align/model`; goes on from a saved state.

    Raises DcclipError for data or a starting model that can't be had, and where a saved state is another recipe's.
    """
    from dataclasses import replace

    from dcclip_cli.train import stage
    from dcclip_cli.train.carry_out import Plan, carry_out
    from dcclip_cli.train.loop import total_steps
    from dcclip_cli.train.teaching import load_teachers
    from dcclip_cli.train.training_data import open_training_data

    progress = progress or Silent()
    folder, model = run.stage("align"), run.model("align")
    if fresh:
        stage.start_over(folder)
    if model.is_dir():
        return TrainResult(model, already_finished=True)
    stage.join_processes(device)
    stage.use_process(options, folder, progress)
    training = open_training_data(
        _used(data, options),
        run,
        options.batch_size,
        options.images_per_step,
        options.texts_per_step,
        seed,
        options.distinct_captions,
    )
    table = training.dataset
    name = run.root.name
    teaching = load_teachers([*([teacher] if teacher else []), *options.more_teachers], options.losses, device)
    if options.start == "scratch":
        if student is None:
            raise DcclipError("align starts from scratch, but the recipe has no student", "add a student section")
        first = teaching.first(teacher, student.text.inherit != "nothing", device)
        width = teaching.widths[0].embedding if teaching.widths else stage.DEFAULT_EMBED_DIM
        learner = stage.new_student(student, width, table, teacher.model if teacher else None, name, seed, first)
    else:
        start = run.model("distill") if options.start == "distill" else Path(options.start)
        if not start.is_dir():
            raise DcclipError(
                f"align starts from {start}, which is not there",
                "run stage 1 first: dcclip distill RECIPE; or write align.start: scratch",
            )
        learner = stage.student_from(start, name)
    assert training.pairs is not None  # or _used had refused
    _check_embeddings(training.pairs, learner.config["embed_dim"], options)
    if options.loss == "siglip":
        learner = stage.with_bias(learner)
    reader = teaching.reader(replace(stage.reader_for(learner, table, options, seed), with_caption_ids=True), options)
    steps = total_steps(options, training.sampler)
    sources = teaching.sources(options.losses, options, reader, learner.towers, steps, device, progress)
    task = TaskLoss(
        loss=options.loss,
        cross_lingual=options.cross_lingual,
        cosine=options.cosine,
        other_weight=options.other_weight,
    )
    options, choice = stage.settle_precision(options, learner, device, folder, options.lock != "image", progress)
    identity = {
        "options": decisive(options),
        "teacher": teaching.identity,
        "parent": learner.parent,
        "student": learner.config,
        "vocabulary": learner.vocabulary,
        "image_weights": student.image.weights if student and learner.parent is None else None,
        "inherit": student.text.inherit if student and learner.parent is None else None,
        "data": table.fingerprint,
        "seed": seed,
    }
    provenance = {
        "stage": "align",
        "identity": stage.sha256_of(identity),
        "data": {"train": table.fingerprint},
        "steps": steps,
        "computed_in": stage.computed_in(options, choice, teaching.teachers),
    }
    plan = Plan(
        "align",
        learner,
        (task, *options.losses),
        teaching,
        sources,
        reader,
        training.sampler,
        options,
        data.validation,
        identity,
        provenance,
        lock=options.lock,
        max_logit_scale=options.max_logit_scale,
        half=options.half,
    )
    return carry_out(plan, seed, run, device, progress)


def _used(data: DataOptions, options: AlignOptions) -> DataOptions:
    """What of the recipe's data this stage looks at. Raises DcclipError where it has no pairs, or no use for more."""
    train = options.train or data.train
    if train is None:
        raise DcclipError("data has no pairs, and align matches pictures with captions", "name some: data.train")
    used: dict[str, str | None] = {"train": train}
    for name, wanted in (("images", options.images_per_step), ("texts", options.texts_per_step)):
        used[name] = getattr(data, name) if wanted else None
        if wanted and used[name] is None:
            raise DcclipError(
                f"align.{name}_per_step is {wanted}, but there is no data.{name}", f"name some: data.{name}"
            )
        if wanted and not options.losses:
            raise DcclipError(
                f"align.{name}_per_step is {wanted}, but the contrast learns from pairs alone",
                "add a distillation loss to align.losses, or leave it out",
            )
    return data.model_copy(update=used)


def _check_embeddings(table: PairDataset, width: int, options: AlignOptions) -> None:
    """Raises DcclipError for pairs of embeddings that this student can't be trained on."""
    if table.embeddings is None:
        return
    if options.lock != "image" or options.losses:
        raise DcclipError(
            f"{table.path} holds embeddings, no pictures, for an image tower or a teacher to look at",
            "write align.lock: image and leave align.losses out, or train on pairs with pictures",
        )
    if table.embeddings.shape[1] != width:
        raise DcclipError(
            f"the embeddings in {table.path} are {table.embeddings.shape[1]} wide, the student's space {width}",
            f"write student.embed_dim: {table.embeddings.shape[1]}",
        )
