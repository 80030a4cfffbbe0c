"""Stage 2: both towers together, image against caption in each language (DC-CLIP stage 2; symmetric InfoNCE, CLIP)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dcclip_cli.data.batches import DataOptions, Order, Reader, caption_groups
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.runs import RunFolder, StageResult
from dcclip_cli.train.options import LoopOptions

DEFAULT_EMBED_DIM = 256


class AlignOptions(LoopOptions):
    """Stage 2 of a recipe, or the training of a model from scratch."""

    loss: Literal["clip"] = Field("clip", description="CLIP's symmetric InfoNCE, averaged over the languages")
    start: str = Field("distill", description="`distill` (this recipe's stage 1), `scratch`, or a model directory")
    lock: Literal["image", "text"] | None = Field(None, description="A tower that stays as it is, batch norms included")
    cross_lingual: float = Field(0.0, ge=0, description="Weight of InfoNCE between the two captions of one image")
    other_weight: float = Field(1.0, ge=0, description="Weight of the second captions that captions.also_other adds")
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
    run: RunFolder,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress | None = None,
) -> StageResult:
    """Train the two towers together and leave `align/model`; goes on from a saved state.

    Raises DcclipError for data or a starting model that can't be had, and where a saved state is another recipe's.
    """
    from dcclip_cli.train import stage
    from dcclip_cli.train.contrast_stage import ContrastStage
    from dcclip_cli.train.loop import fit, total_steps

    progress = progress or Silent()
    folder, model = run.stage("align"), run.model("align")
    if fresh:
        stage.start_over(folder)
    if model.is_dir():
        return StageResult(model, already_finished=True)
    stage.use_process(options.threads)
    table = stage.open_training_pairs(data, run)
    name = run.root.name
    if options.start == "scratch":
        if student is None:
            raise DcclipError("align starts from scratch, but the recipe has no student", "add a student section")
        teacher_name = teacher.model if teacher else None
        learner = stage.new_student(student, DEFAULT_EMBED_DIM, table, teacher_name, name, seed)
    else:
        start = run.model("distill") if options.start == "distill" else Path(options.start)
        if not start.is_dir():
            raise DcclipError(
                f"align starts from {start}, which is not there",
                "run stage 1 first: dcclip distill RECIPE; or write align.start: scratch",
            )
        learner = stage.student_from(start, name)
    reader = Reader(
        table,
        seed,
        options.augment,
        options.captions,
        learner.towers.preprocess,
        learner.towers.tokenize,
        find_shared=True,
    )
    module = ContrastStage(
        learner.towers, options.lock, options.cross_lingual, options.other_weight, options.max_logit_scale
    )
    identity = stage.identity_of(
        {
            "options": options.model_dump(mode="json", exclude=stage.NEUTRAL),
            "parent": learner.parent,
            "student": learner.config,
            "vocabulary": learner.vocabulary,
            "image_weights": student.image.weights if student and learner.parent is None else None,
            "data": table.fingerprint,
            "seed": seed,
        }
    )
    groups = caption_groups(table) if options.distinct_captions else None
    order = Order(len(table), options.batch_size, seed, groups)
    provenance = {
        "stage": "align",
        "identity": identity,
        "data": {"train": table.fingerprint},
        "steps": total_steps(options, order),
    }

    def finish(figures: dict[str, float]) -> None:
        learner.save(model, {**provenance, "metrics": figures}, half=options.half)

    fitted = fit(module, "align", reader, order, options, folder, identity, seed, device, progress, finish)
    return StageResult(model, False, fitted.seconds, fitted.figures, provenance)
