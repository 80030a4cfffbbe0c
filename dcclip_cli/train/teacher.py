"""Teachers: loading them, and their features for a batch, cached or computed in each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.data.pixels import normalized, training_preprocess
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.precision import finite
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import OpenClipTowers, Towers
from dcclip_cli.progress import Progress
from dcclip_cli.train.feature_shapes import map_grids, no_images, widths
from dcclip_cli.train.losses.base import Loss, Outputs, TeacherLoss, Widths, learns_from
from dcclip_cli.train.options import StageContext, TrainOptions
from dcclip_cli.train.teacher_cache import TeacherCache


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
    """The teachers of a stage by number: options, loaded towers, and widths with the layers that the losses use."""

    options: tuple[Teacher, ...] = ()
    towers: tuple[Towers, ...] = ()
    widths: tuple[Widths, ...] = ()

    @property
    def fingerprints(self) -> list[str]:
        """Change whenever an output of any teacher could."""
        return [teacher.fingerprint for teacher in self.towers]

    def for_collator(self, collator: Collator, options: TrainOptions) -> Collator:
        """The collator with what the teachers need: a bounded number of augmentations, or their own pixels."""
        if not self.towers:
            return collator
        if options.teacher_cache:
            return replace(collator, num_augmentations=options.augmentations)
        return replace(collator, teacher_preprocess=tuple(map(training_preprocess, self.towers)))


def load_teachers(
    teachers: Sequence[Teacher], losses: Sequence[Loss], device: str, progress: Progress | None = None
) -> Teachers:
    """The teachers, or none if no loss needs any.

    Raises DcclipError if one cannot be loaded, or a loss names one that does not exist.
    """
    for loss in losses:
        if isinstance(loss, TeacherLoss) and loss.teacher >= len(teachers):
            there = f"there are {len(teachers)}, counted from 0" if teachers else "the recipe has none"
            raise DcclipError(
                f"loss {loss.kind} learns from teacher {loss.teacher}, and {there}",
                "add teachers to more_teachers, or use a smaller number",
            )
    if not any(loss.needs_teacher for loss in losses):
        return Teachers()
    loaded = tuple(teacher.load(device, progress) for teacher in teachers)
    return Teachers(
        tuple(teachers), loaded, tuple(widths(one, layers_of(losses, number)) for number, one in enumerate(loaded))
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
    steps: int,
    context: StageContext,
) -> list[TeacherFeatures]:
    """The source of each teacher's features. With the cache on, it is filled here and holds no teacher afterwards."""
    for towers in teachers.towers:
        for line in towers.precision.lines(f"teacher {towers.name}"):
            context.progress.say(line)
    if not options.teacher_cache:
        return [
            OnlineTeacher(towers, number, layers_of(losses, number), teachers.widths[number])
            for number, towers in enumerate(teachers.towers)
        ]
    if not teachers.towers:
        return []
    grids = map_grids(student, sorted({layer for loss in losses for layer in loss.student_layers_needed}))
    caches = []
    for number, towers in enumerate(teachers.towers):
        its_losses, its_widths = learns_from(losses, number), teachers.widths[number]
        cache = TeacherCache(towers, its_widths, collator, its_losses, grids, context.device, context.progress)
        cache.fill(towers, partial(teachers.options[number].load, context.device))
        caches.append(cache)
    _say_what_is_saved(caches, options, steps, context.progress)
    return list(caches)


def _say_what_is_saved(caches: Sequence[TeacherCache], options: TrainOptions, steps: int, progress: Progress) -> None:
    """Report what filling the cache took, and what the teachers would take if they ran in every step."""
    images = options.batch_size * steps
    captions = images * len(options.captions.languages) * (2 if options.captions.second_caption else 1)
    once = sum(cache.seconds_once for cache in caches)
    online = sum(cache.seconds(images, captions) for cache in caches)
    progress.say(
        f"teacher: runs once, {_duration(once)}; running it in each of {steps} steps would take about "
        f"{_duration(online)}" + (f": {_duration(online - once)} saved" if online > once else "")
    )
    for cache in caches:
        reused = f", {cache.found / cache.rows:.0%} of the rows reused" if cache.found else ""
        progress.say(f"teacher: features in {cache.folder}, {cache.size / 1e6:,.0f} MB{reused}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
