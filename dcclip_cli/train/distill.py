"""Stage 1: the student's two towers learn the frozen teacher's features (DC-CLIP, arXiv 2404.11249)."""

from __future__ import annotations

from pydantic import Field

from dcclip_cli.data.batches import DataOptions, Order, Reader
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.runs import RunFolder, StageResult
from dcclip_cli.train.losses import DistillLoss, EmbeddingLoss, FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import LoopOptions


class DistillOptions(LoopOptions):
    """Stage 1 of a recipe."""

    losses: tuple[DistillLoss, ...] = Field(
        (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss()),
        min_length=1,
        description="What pulls the student towards the teacher: their weighted sum",
    )
    teacher_cache: bool = Field(
        True, description="Ask the teacher once per picture and augmentation, and keep its answers"
    )
    augmentations: int = Field(4, ge=1, description="Different augmentations of a picture, where the cache is on")


def distill(
    *,
    options: DistillOptions,
    teacher: Teacher,
    student: StudentOptions,
    data: DataOptions,
    seed: int,
    run: RunFolder,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress | None = None,
) -> StageResult:
    """Train a student on the teacher's features and leave `distill/model`; goes on from a saved state.

    Raises DcclipError for data, teacher or student that can't be had, and where a saved state is another recipe's.
    """
    from dcclip_cli.train import stage
    from dcclip_cli.train.feature_stage import FeatureStage, OnlineTeacher, TeacherSource, map_grid, widths
    from dcclip_cli.train.loop import fit, total_steps
    from dcclip_cli.train.teacher_cache import build_cache

    progress = progress or Silent()
    folder, model = run.stage("distill"), run.model("distill")
    if fresh:
        stage.start_over(folder)
    if model.is_dir():
        return StageResult(model, already_finished=True)
    stage.use_process(options.threads)
    table = stage.open_training_pairs(data, run)
    teaching = teacher.load(device)
    teacher_widths = widths(teaching)
    learner = stage.new_student(student, teacher_widths.embedding, table, teacher.model, run.root.name, seed)
    if learner.towers.parameters_count() >= teaching.parameters_count():
        progress.say(
            f"warning: the student has {learner.towers.parameters_count():,} parameters, "
            f"the teacher {teaching.parameters_count():,}"
        )
    reader = Reader(
        table,
        seed,
        options.augment,
        options.captions,
        learner.towers.preprocess,
        learner.towers.tokenize,
        teacher_preprocess=None if options.teacher_cache else teaching.preprocess,
        repeats=options.augmentations if options.teacher_cache else 0,
    )
    student_widths = widths(learner.towers)
    if options.teacher_cache:
        grid, cache = map_grid(learner.towers), run.stage("teacher-cache")
        with stage.main_process_first(device):  # it fills the cache, the others find it full
            source: TeacherSource = build_cache(teaching, reader, options.losses, grid, cache, device, progress)
    else:
        source = OnlineTeacher(teaching)
    module = FeatureStage(learner.towers, source, options.losses, student_widths, teacher_widths, seed)
    identity = stage.identity_of(
        {
            "options": options.model_dump(mode="json", exclude=stage.NEUTRAL),
            "teacher": teaching.fingerprint,
            "student": learner.config,
            "vocabulary": learner.vocabulary,
            "image_weights": student.image.weights,
            "data": table.fingerprint,
            "seed": seed,
        }
    )
    order = Order(len(table), options.batch_size, seed)
    provenance = {
        "stage": "distill",
        "identity": identity,
        "teacher": {"name": teaching.name, "fingerprint": teaching.fingerprint},
        "data": {"train": table.fingerprint},
        "steps": total_steps(options, order),
    }

    def finish(figures: dict[str, float]) -> None:
        learner.save(model, {**provenance, "metrics": figures})

    fitted = fit(module, "distill", reader, order, options, folder, identity, seed, device, progress, finish)
    return StageResult(model, False, fitted.seconds, fitted.figures, provenance)
