"""A stage's teachers: loaded, remembered or asked, with what the reader has to bring for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dcclip_cli.data.collator import Collator
from dcclip_cli.errors import DcclipError
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import OpenClipTowers, Towers
from dcclip_cli.progress import Progress
from dcclip_cli.train.feature_shapes import map_grids, widths
from dcclip_cli.train.losses.base import Loss, TeacherLoss, Widths
from dcclip_cli.train.options import TeachingOptions
from dcclip_cli.train.stage import minutes
from dcclip_cli.train.teacher_cache import TeacherCache
from dcclip_cli.train.teachers import OnlineTeacher, TeacherSource, asking, layers_of


@dataclass(frozen=True)
class Teaching:
    """The teachers of a stage, and how wide each is with the layers that its losses look at."""

    teachers: tuple[Towers, ...] = ()
    widths: tuple[Widths, ...] = ()

    @property
    def identity(self) -> list[str]:
        """Changes whenever any teacher's answers could."""
        return [teacher.fingerprint for teacher in self.teachers]

    def first(self, teacher: Teacher | None, inherits: bool, device: str) -> Towers | None:
        """The recipe's own teacher, where losses ask for one or the student `inherits` from it."""
        if self.teachers:
            return self.teachers[0]
        return teacher.load(device) if teacher is not None and inherits else None

    def reader(self, reader: Collator, options: TeachingOptions) -> Collator:
        """The reader with what the teachers need of it."""
        if not self.teachers:
            return reader
        if options.teacher_cache:
            return replace(reader, num_augmentations=options.augmentations)
        return replace(reader, teacher_preprocess=tuple(teacher.preprocess for teacher in self.teachers))

    def sources(
        self,
        losses: Sequence[Loss],
        options: TeachingOptions,
        reader: Collator,
        student: OpenClipTowers,
        steps: int,
        device: str,
        progress: Progress,
    ) -> list[TeacherSource]:
        """Where each teacher's features come from; with the cache on, it is filled here, and what it saves is said."""
        if not self.teachers:
            return []
        for teacher in self.teachers:
            for line in teacher.precision.lines(f"teacher {teacher.name}"):
                progress.say(line)
        if not options.teacher_cache:
            return [
                OnlineTeacher(teacher, number, layers_of(losses, number), self.widths[number])
                for number, teacher in enumerate(self.teachers)
            ]
        grids = map_grids(student, sorted({layer for loss in losses for layer in loss.further_student_maps}))
        caches = [
            TeacherCache(teacher, self.widths[number], reader, asking(losses, number), grids, device, progress)
            for number, teacher in enumerate(self.teachers)
        ]
        for cache in caches:
            cache.fill()
        _say_what_is_saved(caches, options, reader, steps, progress)
        return list(caches)


def load_teachers(teachers: Sequence[Teacher], losses: Sequence[Loss], device: str) -> Teaching:
    """The teachers. Raises DcclipError where one can't be had, and where a loss learns from one that there is not."""
    for loss in losses:
        if isinstance(loss, TeacherLoss) and loss.teacher >= len(teachers):
            there = f"there are {len(teachers)}, counted from 0" if teachers else "the recipe has none"
            raise DcclipError(
                f"loss {loss.kind} learns from teacher {loss.teacher}, and {there}",
                "name more teachers in more_teachers, or a smaller number",
            )
    if not any(loss.needs_teacher for loss in losses):
        return Teaching()
    loaded = tuple(teacher.load(device) for teacher in teachers)
    return Teaching(loaded, tuple(widths(one, layers_of(losses, number)) for number, one in enumerate(loaded)))


def _say_what_is_saved(
    caches: Sequence[TeacherCache], options: TeachingOptions, reader: Collator, steps: int, progress: Progress
) -> None:
    a_batch = options.batch_size * steps
    captions = a_batch * len(reader.captions.languages) * (2 if reader.captions.second_caption else 1)
    once = sum(cache.seconds_once for cache in caches)
    online = sum(cache.seconds(a_batch, captions) for cache in caches)
    found = sum(cache.found for cache in caches) / max(1, sum(cache.rows for cache in caches))
    progress.say(
        f"teacher: runs once, {minutes(once)}; at each of {steps} steps it would take about {minutes(online)}"
        + (f": {minutes(online - once)} saved" if online > once else "")
    )
    for cache in caches:
        reused = f", {found:.0%} of the rows reused" if found else ""
        progress.say(f"teacher: features in {cache.store.folder}, {cache.store.size / 1e6:,.0f} MB{reused}")


def check_data(losses: Sequence[Loss], there: set[str]) -> None:
    """Raise DcclipError for a loss that none of the kinds of data `there` serves."""
    for loss in losses:
        if not loss.needs & there:
            wanted = " or ".join(f"data.{'train' if kind == 'pairs' else kind}" for kind in sorted(loss.needs))
            raise DcclipError(f"loss {loss.kind} finds nothing to learn from", f"give {wanted}, or leave it out")
