"""Teachers: loading them, and their features for a batch, cached or computed in each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

import torch

from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.data.pixels import normalized, training_preprocess
from dcclip_cli.data.samplers import MixedBatchSampler, Sample
from dcclip_cli.errors import Message
from dcclip_cli.machine import loading_processes
from dcclip_cli.model.precision import finite
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import OpenClipTowers, Towers
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.text import duration_in_words
from dcclip_cli.train.feature_shapes import map_grids, no_images
from dcclip_cli.train.lazy_teacher import LazyTeacher, TeacherFacts
from dcclip_cli.train.losses.base import Loss, Outputs, Widths, learns_from
from dcclip_cli.train.options import StageContext, TrainOptions
from dcclip_cli.train.teacher_cache import TeacherCache

_ROWS = 65_536  # image rows that the caches are completed for at a time


class TeacherFeatures(Protocol):
    """Where a teacher's features of a batch come from."""

    @property
    def widths(self) -> Widths: ...

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, without gradients."""


class OnlineTeacher:
    """Runs the teacher on every batch, whose `teacher_pixels[number]` are this teacher's."""

    def __init__(self, teacher: Towers, number: int, layers: Sequence[int], widths: Widths) -> None:
        self.widths = widths
        self._teacher, self._number, self._layers = teacher, number, tuple(layers)
        self._scale = torch.tensor(teacher.logit_scale)

    def features(self, batch: Batch) -> Outputs:
        pixels = normalized(batch.teacher_pixels[self._number], self._teacher.preprocessing)
        with self._teacher.as_teacher():
            if len(pixels):
                image = self._teacher.image_features(pixels, self._layers)
            else:
                image = no_images(self.widths, self._layers, pixels.device)
            texts = {
                name: self._teacher.text_features_by_length(self._teacher.tokenize(texts.captions).to(pixels.device))
                for name, texts in batch.texts.items()
            }
        embeddings = {"images": [image.embedding], "texts": [text.embedding for text in texts.values()]}
        every = [one.isfinite().all() for several in embeddings.values() for one in several]
        if not bool(torch.stack(every).all()):  # read from the device once
            for inputs, several in embeddings.items():
                for embedding in several:
                    finite(embedding.float().cpu().numpy(), self._teacher.name, inputs)
        image_index = {name: texts.image_index for name, texts in batch.texts.items()}
        return Outputs(image, texts, image_index, self._scale.to(pixels.device))


@dataclass(frozen=True)
class Teachers:
    """The teachers of a stage by number; none of them is loaded before it is needed."""

    all: tuple[LazyTeacher, ...] = ()

    @property
    def facts(self) -> list[TeacherFacts]:
        return [teacher.facts for teacher in self.all]

    def for_collator(self, collator: Collator, options: TrainOptions) -> Collator:
        """The collator with what the teachers need: a bounded number of augmentations, or their own pixels."""
        if not self.all:
            return collator
        if options.teacher_cache:
            return replace(collator, num_augmentations=options.augmentations)
        return replace(collator, teacher_preprocess=tuple(training_preprocess(teacher.towers) for teacher in self.all))


def open_teachers(teachers: Sequence[Teacher], losses: Sequence[Loss], device: str, progress: Progress) -> Teachers:
    """The teachers, or none if no loss needs any."""
    if not any(loss.needs_teacher for loss in losses):
        return Teachers()
    return Teachers(
        tuple(LazyTeacher(one, device, progress, layers_of(losses, number)) for number, one in enumerate(teachers))
    )


def layers_of(losses: Sequence[Loss], teacher: int) -> tuple[int, ...]:
    """The teacher's image layers, without the last one, whose maps some loss needs."""
    return tuple(sorted({layer for loss in learns_from(losses, teacher) for layer in loss.teacher_layers_needed}))


def teacher_features(
    teachers: Teachers,
    losses: Sequence[Loss],
    options: TrainOptions,
    collator: Collator,
    student: OpenClipTowers,
    context: StageContext,
) -> list[TeacherCache] | list[OnlineTeacher]:
    """The source of each teacher's features: its cache, or the teacher itself."""
    for facts in teachers.facts:
        for line in facts.precision.lines(Message("teacher {}", facts.name)):
            context.progress.say(line)
    if not options.teacher_cache:
        return [
            OnlineTeacher(teacher.towers, number, layers_of(losses, number), teacher.facts.widths)
            for number, teacher in enumerate(teachers.all)
        ]
    if not teachers.all:
        return []
    grids = map_grids(student, sorted({layer for loss in losses for layer in loss.student_layers_needed}))
    workers, progress = loading_processes(options.workers), context.progress
    return [
        TeacherCache(teacher, collator, learns_from(losses, number), grids, workers, progress, number)
        for number, teacher in enumerate(teachers.all)
    ]


@dataclass(frozen=True)
class CacheFillingSampler(MixedBatchSampler):
    """Completes the teacher caches for some steps at a time, right before the first batch of these is handed out.

    The parts are fixed by step numbers, and each is completed in every process, so that a run that was killed finds
    the same rows to compute, and any number of processes share them.
    """

    caches: tuple[TeacherCache, ...] = ()
    progress: Progress = field(default_factory=Silent)

    def share(self, start_step: int, steps: int, process: int = 0, processes: int = 1) -> Iterator[list[Sample]]:
        size = max(1, _ROWS // self.batch_size)  # steps
        begin = start_step - start_step % size
        batches = super().share(begin, steps)
        for first in range(begin, steps, size):
            of_steps = list(islice(batches, size))
            shares = [self.part(batch, number, processes) for batch in of_steps for number in range(processes)]
            for cache in self.caches:
                cache.complete(shares)
                if first + size >= steps:
                    cache.finish()
            if first + size >= steps:
                self._say_what_was_saved(steps - begin)
            for step, batch in enumerate(of_steps, first):
                if step >= start_step:
                    yield self.part(batch, process, processes)

    def _say_what_was_saved(self, steps: int) -> None:
        """Report what the teachers computed, and what they would take if they ran in every step."""
        once = sum(cache.seconds(*cache.computed.values()) for cache in self.caches)
        online = sum(cache.seconds(*cache.used.values()) for cache in self.caches)
        self.progress.say(
            Message(
                "teacher: ran for {}; running it in each of these {} steps would take about {}{}",
                duration_in_words(once),
                steps,
                duration_in_words(online),
                Message(": {} saved", duration_in_words(online - once)) if online > once else "",
            )
        )
        for cache in self.caches:
            done = ", ".join(f"{count:,} {what}" for what, count in cache.computed.items())
            self.progress.say(
                Message("teacher: features in {}, {:,.0f} MB; computed {}", cache.folder, cache.size / 1e6, done)
            )
