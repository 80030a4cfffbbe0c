"""Preparation and run of a training stage: student, teachers, data, identity and provenance, then the Trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.pixels import training_preprocess
from dcclip_cli.data.samplers import Sample, StageData, TrainingData, open_training_data
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.machine import loading_processes
from dcclip_cli.options import decisive
from dcclip_cli.progress import Progress
from dcclip_cli.run_dir import TrainResult
from dcclip_cli.train.checkpoint import telling_saved_step
from dcclip_cli.train.compute import computed_in, join_processes, settle_precision, use_kernels, use_threads
from dcclip_cli.train.distributed import processes_here
from dcclip_cli.train.lazy_teacher import LazyTeacher
from dcclip_cli.train.losses.base import Loss, Tower
from dcclip_cli.train.options import DEFAULT_EMBED_DIM, StageContext, TrainOptions, loss_problems
from dcclip_cli.train.student import Student, new_student, student_from
from dcclip_cli.train.task import TrainingTask, learns_everything, shorter_dims
from dcclip_cli.train.teacher import CacheFillingSampler, TeacherFeatures, Teachers, open_teachers, teacher_features
from dcclip_cli.train.teacher_cache import TeacherCache
from dcclip_cli.train.teacher_space import NarrowTeacher, narrow_space
from dcclip_cli.train.trainer import RunInfo, Trainer, Validate
from dcclip_cli.train.validation import open_validation


@dataclass(frozen=True)
class StageSetup:
    """What differs between distill and align: name, losses, data and the model to start from (None: a new student).

    `caption_ids`: batches identify their captions, so that a contrastive loss recognizes false negatives. `lock`: a
    tower that is not trained.
    """

    name: Literal["distill", "align"]
    losses: Sequence[Loss]
    data: StageData
    start: Path | None = None
    caption_ids: bool = False
    lock: Tower | None = None
    max_logit_scale: float = 100.0
    half: bool = False


@dataclass(frozen=True)
class PreparedStage:
    """A stage that is ready to train. `options` have nothing left at `auto`.

    `unused_parameters`: a step may leave parameters without a gradient.
    """

    student: Student
    task: TrainingTask
    collator: Collator
    training: TrainingData
    options: TrainOptions
    identity: dict[str, Any]
    provenance: dict[str, Any]
    validate: Validate | None
    unused_parameters: bool = True


def train_stage(setup: StageSetup, options: TrainOptions, context: StageContext) -> TrainResult:
    """Train as set up, and write the stage's model directory."""
    folder, model = context.run.stage(setup.name), context.run.model(setup.name)
    with telling_saved_step(folder, context.fresh):
        stage = prepare(setup, options, context)
        info = RunInfo(
            setup.name,
            folder,
            stage.identity,
            context.seed,
            context.device,
            stage.unused_parameters,
            context.progress,
            context.track,
        )
        sampler = stage.training.sampler
        trainer = Trainer(stage.task, stage.collator, sampler, stage.options, info, stage.validate)

        def save(metrics: dict[str, float]) -> None:
            if trainer.is_main_process:
                stage.student.save(model, {**stage.provenance, "metrics": metrics}, setup.half)

        metrics = trainer.run(save)
    trainer.close()
    return TrainResult(model, False, trainer.seconds, metrics, stage.provenance)


def prepare(setup: StageSetup, options: TrainOptions, context: StageContext) -> PreparedStage:
    """Everything that a stage needs before its first step. Fills the teacher cache, after which teachers are freed.

    Raises DcclipError for data, a teacher or a student that cannot be loaded, and for options that exclude each other.
    """
    run, seed, device, progress = context.run, context.seed, context.device, context.progress
    folder = run.stage(setup.name)
    join_processes(device)
    options = options.model_copy(update={"workers": loading_processes(options.workers, device, processes_here())})
    use_kernels(options, device)
    use_threads(options, folder, progress)
    training = open_training_data(setup.data, run, seed, progress)
    _check_data(setup, training)
    named = [*([] if context.teacher is None else [context.teacher]), *options.more_teachers]
    for key, problem in loss_problems(options, setup.losses, len(named)):
        raise DcclipError(Message("{}.{}: {}", setup.name, ".".join(map(str, key)), problem.what), problem.hint)
    teachers = open_teachers(named, setup.losses, device, progress)
    first = _first_teacher(teachers, setup, context)
    student = _open_student(setup, context, training, teachers, first)
    _check_embeddings(student.config["embed_dim"], training.datasets.get("pairs"))
    preprocess = training_preprocess(student.towers)
    collator = Collator(training.dataset, seed, options.augment, options.captions, preprocess, student.towers.tokenize)
    collator = teachers.for_collator(replace(collator, with_caption_ids=setup.caption_ids), options)
    features = teacher_features(teachers, setup.losses, options, collator, student.towers, context)
    steps = options.total_steps(training.sampler.steps_per_epoch)
    batches = training.sampler.share(0, steps)
    student, sources = _in_the_teachers_space(student, features, collator, batches, setup, teachers, progress)
    if caches := tuple(one for one in features if isinstance(one, TeacherCache)):
        collator = replace(collator, read_features=tuple(cache.reader for cache in caches))
        sampler = CacheFillingSampler(training.sampler.samplers, caches, progress)
        training = replace(training, sampler=sampler)
    trains_images = setup.lock != "image" and bool({"pairs", "images"} & training.datasets.keys())
    options, choice = settle_precision(options, student.towers, device, folder, trains_images, progress)
    identity = _identity(setup, options, context, student, training.dataset, teachers)
    task = TrainingTask(
        student.towers,
        setup.losses,
        sources,
        seed,
        setup.lock,
        setup.max_logit_scale,
        options.freeze_batch_norms,
        shorter_dims(options.dims, student.config["embed_dim"]),
    )
    if options.gradient_checkpointing:
        student.checkpoint_gradients()
    validate = None
    if options.validate_every_steps is not None:
        validate = partial(open_validation(setup.data.options, options.captions.languages), student.towers)
    provenance = {
        "stage": setup.name,
        "identity": hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest(),
        "teacher": {key: getattr(first.facts, key) if first else None for key in ("name", "fingerprint")},
        "data": {"train": training.dataset.fingerprint},
        "steps": steps,
        "computed_in": computed_in(options, choice, teachers.facts),
    }
    if options.dims:
        provenance["trained_dims"] = sorted({*options.dims, student.config["embed_dim"]})
    unused = not learns_everything(setup.losses, setup.lock, training.datasets.keys(), training.dataset)
    return PreparedStage(student, task, collator, training, options, identity, provenance, validate, unused)


def _first_teacher(teachers: Teachers, setup: StageSetup, context: StageContext) -> LazyTeacher | None:
    """The recipe's own teacher, where losses need one or a new student inherits from it."""
    if teachers.all:
        return teachers.all[0]
    if context.teacher is None or not _inherits(setup, context):
        return None
    return LazyTeacher(context.teacher, context.device, context.progress)


def _inherits(setup: StageSetup, context: StageContext) -> bool:
    student = context.student
    return setup.start is None and student is not None and student.inherits


def _open_student(
    setup: StageSetup, context: StageContext, training: TrainingData, teachers: Teachers, first: LazyTeacher | None
) -> Student:
    name = context.run.root.name
    if setup.start is not None:
        student = student_from(setup.start, name)
    else:
        assert context.student is not None
        width = first.facts.widths.embedding if teachers.all and first else DEFAULT_EMBED_DIM
        teacher = context.teacher.model if context.teacher else None
        towers = first.towers if first and _inherits(setup, context) else None
        student = new_student(context.student, width, training.dataset, name, context.seed, teacher, towers)
        count = student.towers.parameters_count()
        if first and count >= first.facts.parameters:
            context.progress.say(
                Message("warning: the student has {:,} parameters, the teacher {:,}", count, first.facts.parameters)
            )
    needs_bias = any(loss.kind == "task" and getattr(loss, "loss", "") == "siglip" for loss in setup.losses)
    return student.with_bias() if needs_bias else student


def _in_the_teachers_space(
    student: Student,
    features: Sequence[TeacherFeatures],
    collator: Collator,
    batches: Iterable[list[Sample]],
    setup: StageSetup,
    teachers: Teachers,
    progress: Progress,
) -> tuple[Student, list[TeacherFeatures]]:
    """The student, and the teachers' features, the first teacher's narrowed to the student's width if it is wider.

    A student that is trained further keeps the space that it was made in, if that is this teacher's.
    """
    width, sources = student.config["embed_dim"], list(features)
    if not sources or width >= sources[0].widths.embedding:
        return student, sources
    fingerprint = teachers.facts[0].fingerprint
    if setup.start is None:
        progress.say(Message("teacher: looking for its {} principal components", width))
        student = replace(student, space=narrow_space(fingerprint, sources[0], collator, batches, width))
    if student.space and student.space.teacher == fingerprint:
        sources[0] = NarrowTeacher(sources[0], student.space)
    return student, sources


def _check_data(setup: StageSetup, training: TrainingData) -> None:
    """Raise DcclipError for losses that the data has nothing for, and for embeddings where images are needed."""
    for loss in setup.losses:
        loss.check_data(training.datasets.keys())
    pairs = training.datasets.get("pairs")
    if pairs is None or pairs.embeddings is None:
        return
    if setup.lock != "image" or any(loss.needs_teacher for loss in setup.losses):
        what = Message("{} contains embeddings instead of images for an image tower or a teacher", pairs.path)
        raise DcclipError(what, "use align with lock: image and without losses, or train on pairs with images")


def _check_embeddings(width: int, pairs: PairDataset | None) -> None:
    """Raise DcclipError for embeddings of another width than the student's."""
    if pairs is not None and pairs.embeddings is not None and pairs.embeddings.shape[1] != width:
        found = pairs.embeddings.shape[1]
        raise DcclipError(
            "the embeddings in {0} have {1} dimensions, the student's have {2}",
            "set student.embed_dim: {1}",
            pairs.path,
            found,
            width,
        )


def _identity(
    setup: StageSetup,
    options: TrainOptions,
    context: StageContext,
    student: Student,
    dataset: PairDataset,
    teachers: Teachers,
) -> dict[str, Any]:
    """Everything that decides the result of a stage."""
    new = context.student if setup.start is None else None
    return {
        "options": decisive(options),
        "teacher": [facts.fingerprint for facts in teachers.facts],
        "parent": student.parent,
        "student": student.config,
        "vocabulary": student.vocab_digest,
        "image_weights": (new.image if isinstance(new.image, str) else new.image.weights) if new else None,
        "inherit": new.text.inherit if new else None,
        **({"inherit_images": True} if new and new.inherits_images else {}),
        "data": dataset.fingerprint,
        "shuffle_window": setup.data.options.shuffle_window,
        "seed": context.seed,
    }
