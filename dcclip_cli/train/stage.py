"""Preparation and run of a training stage: student, teachers, data, identity and provenance, then the Trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dcclip_cli.data.collator import Collator
from dcclip_cli.data.pair import Language, PairDataset
from dcclip_cli.data.pixels import training_preprocess
from dcclip_cli.data.samplers import Sample, TrainingData, open_training_data
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.machine import loading_processes
from dcclip_cli.options import decisive
from dcclip_cli.run_dir import TrainResult
from dcclip_cli.train.checkpoint import telling_saved_step
from dcclip_cli.train.compute import (
    computed_in,
    join_processes,
    settle_compile,
    settle_precision,
    use_kernels,
    use_threads,
)
from dcclip_cli.train.distributed import check_shared, processes_here
from dcclip_cli.train.lora import add_lora, merge_lora
from dcclip_cli.train.losses.base import layers_of, learns_from, student_layers
from dcclip_cli.train.optimizer import rate_scale
from dcclip_cli.train.options import (
    DEFAULT_EMBED_DIM,
    Problem,
    StageContext,
    StageSetup,
    caption_problems,
    check_embeddings,
    problems,
    warnings,
)
from dcclip_cli.train.student import Student, new_student, student_from
from dcclip_cli.train.task import TrainingTask, learns_everything, shorter_dims
from dcclip_cli.train.teacher import (
    LazyTeacher,
    NarrowTeacher,
    OnlineTeacher,
    TeacherFeatures,
    map_grids,
    narrow_space,
)
from dcclip_cli.train.teacher_cache import CacheFillingSampler, TeacherCache
from dcclip_cli.train.trainer import RunInfo, Trainer
from dcclip_cli.train.validation import open_validation


@dataclass(frozen=True)
class PreparedStage:
    """A stage that is ready to train, and what its model directory will say of it."""

    student: Student
    trainer: Trainer
    provenance: dict[str, Any]


def train_stage(setup: StageSetup, context: StageContext) -> TrainResult:
    """Train as set up, and write the stage's model directory."""
    model = context.run.model(setup.name)
    with telling_saved_step(context.run.stage(setup.name), context.fresh):
        stage = prepare(setup, context)
        trainer = stage.trainer

        def save(metrics: dict[str, float]) -> None:
            if trainer.is_main_process:
                if setup.options.lora:
                    merge_lora(stage.student.towers.model)
                stage.student.save(model, {**stage.provenance, "metrics": metrics}, setup.half)

        metrics = trainer.run(save)
    trainer.close()
    return TrainResult(model, False, trainer.seconds, metrics, stage.provenance)


def prepare(setup: StageSetup, context: StageContext) -> PreparedStage:
    """Everything that a stage needs before its first step. Teachers are loaded only where something is not cached.

    Raises DcclipError for data, a teacher or a student that cannot be loaded, and for options that exclude each other.
    """
    _raise_first(problems(setup, context))
    folder, seed, device, progress = context.run.stage(setup.name), context.seed, context.device, context.progress
    join_processes(device)
    check_shared(folder)
    workers = loading_processes(setup.options.workers, device, processes_here())
    setup = replace(setup, options=setup.options.model_copy(update={"workers": workers}))
    use_kernels(setup.options, device)
    use_threads(setup.options, folder, progress)
    training = open_training_data(context.data, setup.sizes, context.run, seed, progress, setup.distinct_captions)
    _raise_first(caption_problems(setup, partial(_has_captions, training.datasets)))
    pairs = training.datasets.get("pairs")
    if pairs is not None and pairs.embeddings is not None:
        check_embeddings(setup, pairs.path)
    teachers = _open_teachers(setup, context)
    teacher = teachers[0] if teachers else None
    if teacher is None and context.teacher and context.new_student and context.new_student.inherits:
        teacher = LazyTeacher(context.teacher, context.device, context.progress)
    student = _open_student(setup, context, training, teacher)
    collator = _collator(setup, context, student, training, teachers)
    sources = _features(setup, context, teachers, collator, student)
    sampler, steps = training.sampler, setup.options.total_steps(training.sampler.steps_per_epoch)
    for line in warnings(setup, context.new_student, steps):
        progress.say(line)
    caches = tuple(one for one in sources if isinstance(one, TeacherCache))
    if sources and student.config["embed_dim"] < sources[0].widths.embedding:
        student = _narrowed(student, context, teachers[0], sources[0], collator, sampler(0, steps))
        if student.space and student.space.teacher == teachers[0].facts.fingerprint:
            sources[0] = NarrowTeacher(sources[0], student.space)
    if caches:
        collator = replace(collator, read_features=tuple(cache.reader for cache in caches))
        sampler = CacheFillingSampler(sampler.samplers, caches)
    trains_images = setup.lock != "image" and bool({"pairs", "images"} & training.datasets.keys())
    learns_images = trains_images and setup.options.optimizer.image_lr_scale > 0
    trained = student.towers if learns_images else student.towers.model.text
    options, choice = settle_precision(setup.options, trained, device, folder, progress)
    task = _task(setup, student, sources, seed)
    settled = replace(setup, options=options)
    compiled = trains_images and settle_compile(task, settled, device, folder, progress)
    identity = _identity(settled, context, student, training, teachers)
    provenance = {
        "stage": setup.name,
        "identity": hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest(),
        "teacher": {key: getattr(teacher.facts, key) if teacher else None for key in ("name", "fingerprint")},
        "data": {"train": training.dataset.fingerprint},
        "steps": steps,
        "computed_in": computed_in(options, choice, compiled, [one.facts for one in teachers]),
    }
    if options.dims:
        provenance["trained_dims"] = sorted({*options.dims, student.config["embed_dim"]})
    validate = None
    if options.validate_every_steps is not None:
        validate = partial(open_validation(context.data, options.captions.languages), student.towers)
    unused = not learns_everything(setup.losses, setup.lock, training.datasets.keys(), options.captions)
    info = RunInfo(setup.name, folder, identity, seed, device, unused, progress, context.track, context.listener)
    return PreparedStage(student, Trainer(task, collator, sampler, options, info, validate), provenance)


def _raise_first(problems: Iterable[Problem]) -> None:
    for key, problem in problems:
        raise DcclipError(Message("{}: {}", ".".join(map(str, key)), problem.what), problem.hint)


def _has_captions(datasets: Mapping[str, PairDataset], languages: Sequence[Language], kinds: Collection[str]) -> bool:
    """Whether a sample has captions in all of the languages; the first ones of blocks are looked at before all."""
    for dataset in (datasets[kind] for kind in kinds if kind in datasets):
        captions = [dataset.captions(language) for language in languages]
        firsts = (all(column[first] for column in captions) for first in dataset.blocks.tolist())
        if any(firsts) or any(map(all, zip(*captions, strict=True))):
            return True
    return False


def _open_teachers(setup: StageSetup, context: StageContext) -> list[LazyTeacher]:
    """The teachers by number; none if no loss needs any."""
    if not setup.needs_teacher:
        return []
    teachers = [
        LazyTeacher(one, context.device, context.progress, layers_of(setup.losses, number))
        for number, one in enumerate(context.teachers(setup.options))
    ]
    for facts in (teacher.facts for teacher in teachers):
        context.progress.say(facts.precision.line(Message("teacher {}", facts.name)))
    return teachers


def _open_student(
    setup: StageSetup, context: StageContext, training: TrainingData, teacher: LazyTeacher | None
) -> Student:
    """The student that the stage begins with; `teacher` is the recipe's, if losses or the student need it."""
    name, new = context.run.root.name, context.new_student
    if context.start is not None:
        student = student_from(context.start, name)
    else:
        assert new is not None
        learns = teacher and setup.needs_teacher
        width = teacher.facts.widths.embedding if teacher and learns else DEFAULT_EMBED_DIM
        model = context.teacher.source if context.teacher else None
        towers = teacher.towers if teacher and new.inherits else None
        student = new_student(new, width, training.dataset, name, context.seed, model, towers)
        count = student.towers.parameters_count()
        if teacher and count >= teacher.facts.parameters:
            context.progress.say(
                Message("warning: the student has {:,} parameters, the teacher {:,}", count, teacher.facts.parameters)
            )
    pairs, width = training.datasets.get("pairs"), student.config["embed_dim"]
    if pairs is not None and pairs.embeddings is not None and pairs.embeddings.shape[1] != width:
        raise DcclipError(
            "the embeddings in {0} have {1} dimensions, the student's have {2}",
            "set student.embed_dim: {1}",
            pairs.path,
            pairs.embeddings.shape[1],
            width,
        )
    return student.with_bias() if any(loss.uses_bias for loss in setup.losses) else student


def _collator(
    setup: StageSetup, context: StageContext, student: Student, training: TrainingData, teachers: Sequence[LazyTeacher]
) -> Collator:
    """Makes the stage's batches, with the pixels of teachers that run in each step."""
    options = setup.options
    online = () if options.teacher_cache else teachers
    return Collator(
        training.dataset,
        context.seed,
        options.augment,
        options.captions,
        training_preprocess(student.towers),
        student.towers.tokenize,
        tuple(training_preprocess(teacher.towers) for teacher in online),
        num_augmentations=options.augmentations if teachers and options.teacher_cache else 0,
        with_caption_ids=setup.task,
    )


def _features(
    setup: StageSetup, context: StageContext, teachers: Sequence[LazyTeacher], collator: Collator, student: Student
) -> list[TeacherFeatures]:
    """The source of each teacher's features: its cache, or the teacher itself."""
    if not setup.options.teacher_cache:
        return [
            OnlineTeacher(teacher.towers, number, layers_of(setup.losses, number), teacher.facts.widths)
            for number, teacher in enumerate(teachers)
        ]
    grids = map_grids(student.towers, student_layers(setup.losses)) if teachers else {}
    workers, progress = loading_processes(setup.options.workers), context.progress
    return [
        TeacherCache(teacher, collator, learns_from(setup.losses, number), grids, workers, progress, number)
        for number, teacher in enumerate(teachers)
    ]


def _narrowed(
    student: Student,
    context: StageContext,
    teacher: LazyTeacher,
    source: TeacherFeatures,
    collator: Collator,
    batches: Iterable[list[Sample]],
) -> Student:
    """A student that is narrower than its teacher, with the space that it learns. One that is loaded keeps its own."""
    if context.start is not None:
        return student
    width = student.config["embed_dim"]
    if isinstance(source, TeacherCache):
        batches = source.completing(batches)
    context.progress.say(Message("teacher: looking for its {} principal components", width))
    space = narrow_space(teacher.facts.fingerprint, source, collator, batches, width)
    return replace(student, space=space)


def _task(setup: StageSetup, student: Student, sources: Sequence[TeacherFeatures], seed: int) -> TrainingTask:
    if lora := setup.options.lora:
        add_lora(student.towers.model, lora, setup.lock, seed)
    task = TrainingTask(
        student.towers,
        setup.losses,
        sources,
        seed,
        setup.lock,
        setup.options.freeze_batch_norms,
        shorter_dims(setup.options.dims, student.config["embed_dim"]),
    )
    task.max_logit_scale = setup.max_logit_scale
    for name, parameter in task.named_parameters():
        if rate_scale(name, setup.options.optimizer) == 0:
            parameter.requires_grad_(False)  # no backward pass through what does not learn
    if setup.options.gradient_checkpointing:  # of the towers that the task trains
        student.checkpoint_gradients()
    return task


def _identity(
    setup: StageSetup, context: StageContext, student: Student, training: TrainingData, teachers: Sequence[LazyTeacher]
) -> dict[str, Any]:
    """Everything that decides the result of a stage, whose options have nothing left at `auto`."""
    new = context.new_student
    return {
        "options": decisive(setup.options),
        "teacher": [teacher.facts.fingerprint for teacher in teachers],
        "parent": student.parent,
        "student": student.config,
        "vocabulary": student.vocab_digest,
        "image_weights": (new.image if isinstance(new.image, str) else new.image.weights) if new else None,
        "inherit": new.text.inherit if new else None,
        **({"inherit_images": True} if new and new.inherits_images else {}),
        "data": training.dataset.fingerprint,
        "shuffle_window": context.data.shuffle_window,
        "seed": context.seed,
    }
