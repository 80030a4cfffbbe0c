"""Stage 1: the student's two towers learn the frozen teacher's features (DC-CLIP, arXiv 2404.11249)."""

from __future__ import annotations

from pydantic import Field

from dcclip_cli.data.options import DataOptions
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.options import decisive
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.run_dir import RunDir, TrainResult
from dcclip_cli.train.losses import DistillLoss
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import TeachingOptions


class DistillOptions(TeachingOptions):
    """Stage 1 of a recipe."""

    losses: tuple[DistillLoss, ...] = Field(
        (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss()),
        min_length=1,
        description="What pulls the student towards the teacher: their weighted sum",
    )
    images_per_step: int | None = Field(
        None,
        ge=0,
        description="Pictures of data.images beside batch_size pairs, over all processes; default: batch_size; 0: none",
    )
    texts_per_step: int | None = Field(
        None,
        ge=0,
        description="Lines of data.texts beside batch_size pairs, over all processes; default: batch_size; 0: none",
    )


def distill(
    *,
    options: DistillOptions,
    teacher: Teacher,
    student: StudentOptions,
    data: DataOptions,
    seed: int,
    run: RunDir,
    device: str = "cpu",
    fresh: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a student on the teacher's features and leave `distill/model`; goes on from a saved state.

    Raises DcclipError for data, teacher or student that can't be had, and where a saved state is another recipe's.
    """
    from dcclip_cli.train import stage
    from dcclip_cli.train.carry_out import Plan, carry_out
    from dcclip_cli.train.loop import total_steps
    from dcclip_cli.train.teaching import check_data, load_teachers
    from dcclip_cli.train.training_data import open_training_data

    progress = progress or Silent()
    folder, model = run.stage("distill"), run.model("distill")
    if fresh:
        stage.start_over(folder)
    if model.is_dir():
        return TrainResult(model, already_finished=True)
    stage.join_processes(device)
    stage.use_process(options, folder, progress)
    training = open_training_data(data, run, options.batch_size, options.images_per_step, options.texts_per_step, seed)
    if training.pairs is not None and training.pairs.embeddings is not None:
        raise DcclipError(f"{data.train} holds embeddings, no pictures to distil on", "name pairs with pictures")
    check_data(options.losses, set(training.datasets))
    teaching = load_teachers((teacher, *options.more_teachers), options.losses, device)
    embed_dim = teaching.widths[0].embedding if teaching.widths else stage.DEFAULT_EMBED_DIM
    first = teaching.first(teacher, student.text.inherit != "nothing", device)
    learner = stage.new_student(student, embed_dim, training.dataset, teacher.model, run.root.name, seed, first)
    if any(loss.kind == "task" and loss.loss == "siglip" for loss in options.losses):
        learner = stage.with_bias(learner)
    if first and learner.towers.parameters_count() >= first.parameters_count():
        progress.say(
            f"warning: the student has {learner.towers.parameters_count():,} parameters, "
            f"the teacher {first.parameters_count():,}"
        )
    reader = teaching.reader(stage.reader_for(learner, training.dataset, options, seed), options)
    steps = total_steps(options, training.sampler)
    sources = teaching.sources(options.losses, options, reader, learner.towers, steps, device, progress)
    pictures = bool({"pairs", "images"} & training.datasets.keys())
    options, choice = stage.settle_precision(options, learner, device, folder, pictures, progress)
    identity: dict[str, object] = {
        "options": decisive(options),
        "teacher": teaching.identity,
        "student": learner.config,
        "vocabulary": learner.vocabulary,
        "image_weights": student.image.weights,
        "inherit": student.text.inherit,
        "data": training.dataset.fingerprint,
        "seed": seed,
    }
    provenance = {
        "stage": "distill",
        "identity": stage.sha256_of(identity),
        "teacher": {"name": first.name if first else None, "fingerprint": first.fingerprint if first else None},
        "data": {"train": training.dataset.fingerprint},
        "steps": steps,
        "computed_in": stage.computed_in(options, choice, teaching.teachers),
    }
    plan = Plan(
        "distill",
        learner,
        options.losses,
        teaching,
        sources,
        reader,
        training.sampler,
        options,
        data.validation,
        identity,
        provenance,
    )
    return carry_out(plan, seed, run, device, progress)
