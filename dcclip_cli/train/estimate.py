"""Estimates of a training stage before it begins: steps, rows that its teachers compute, disk space, time in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dcclip_cli.data.preview import Preview
from dcclip_cli.errors import Message, joined
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.progress import Silent
from dcclip_cli.train.disk_space import Rows, checkpoint_bytes, rows_used, steps_of, teacher_cache_bytes
from dcclip_cli.train.dry_run import Shapes
from dcclip_cli.train.feature_shapes import Grid, map_grids, widths
from dcclip_cli.train.lazy_teacher import LazyTeacher
from dcclip_cli.train.losses.base import learns_from
from dcclip_cli.train.options import TrainOptions
from dcclip_cli.train.teacher_cache import stores_of

_TOKENS = 16  # of a text, where nothing else is known
_LONG_S = 1800  # of teacher work that is announced before a run


@dataclass(frozen=True)
class Pace:
    """Seconds that a model takes for an image and for a text."""

    image_s: float
    text_s: float
    measured: bool = False

    def seconds(self, rows: Rows) -> float:
        return rows.images * self.image_s + rows.texts * self.text_s


@dataclass(frozen=True)
class Times:
    """Seconds of a stage: a step, and all that each teacher is still asked; whether the steps were measured."""

    step_s: float
    teachers: Sequence[Pace | None]
    measured: bool


@dataclass(frozen=True)
class StageWork:
    """What decides a stage's time and space: options, data by kind with samples per step, and shapes.

    `teachers` are the options of `shapes.teachers`.
    """

    stage: str
    options: TrainOptions
    data: Mapping[str, Preview]
    sizes: Mapping[str, int]
    shapes: Shapes
    teachers: Sequence[Teacher]
    seed: int = 0
    student: StudentOptions | None = None
    device: str = "cpu"

    @cached_property
    def steps(self) -> int:
        return steps_of(self.options, self.data, self.sizes)

    @cached_property
    def rows(self) -> Rows:
        """The different images and captions of a run."""
        return rows_used(self.options, self.data, self.sizes, self.steps)

    @cached_property
    def asked(self) -> Rows:
        """The rows that each teacher computes: each once with the cache, else those of every step."""
        if self.options.teacher_cache:
            return self.rows
        images = sum(size for kind, size in self.sizes.items() if kind != "texts")
        return Rows(self.steps * images, self.steps * self.texts_per_step)

    @property
    def texts_per_step(self) -> int:
        chosen, captions = self.options.captions, 0.0
        for kind, size in self.sizes.items():
            if (one := self.data.get(kind)) is not None:
                fraction = chosen.caption_fraction if kind == "pairs" else 1.0
                has = sum(bool(found[language]) for found in one.captions for language in chosen.languages)
                captions += size * fraction * (2 if chosen.second_caption else 1) * has / max(1, len(one.captions))
        return round(captions)

    @cached_property
    def grids(self) -> dict[int, Grid]:
        layers = {layer for loss in self.shapes.losses for layer in loss.student_layers_needed}
        return map_grids(self.shapes.student, sorted(layers))

    @cached_property
    def cache_bytes(self) -> float:
        """Bytes that the teacher cache will take in addition, as far as the teachers are known."""
        if not self.options.teacher_cache:
            return 0.0
        total = 0.0
        for number, teacher in enumerate(self.shapes.teachers):
            losses = learns_from(self.shapes.losses, number)
            if teacher is not None and any(loss.needs_teacher for loss in losses):
                layers = sorted({layer for loss in losses for layer in loss.teacher_layers_needed})
                wide = widths(teacher, layers)
                there = self.cached(number)
                left = Rows(self.rows.images - there.images, self.rows.texts - there.texts)
                total += teacher_cache_bytes(wide, losses, self.options, self.data, self.grids, left)
        return total

    @property
    def run_bytes(self) -> int:
        """Bytes of checkpoints and the model."""
        return checkpoint_bytes(self.shapes.student.parameters_count(), self.options)

    def cached(self, number: int) -> Rows:
        """How many of a teacher's rows are stored already, at most: rows of other data are counted as well."""
        if not self.options.teacher_cache:
            return Rows(0, 0)
        losses = learns_from(self.shapes.losses, number)
        layers = sorted({layer for loss in losses for layer in loss.teacher_layers_needed})
        facts = LazyTeacher(self.teachers[number], self.device, Silent(), layers).known_facts
        if facts is None:
            return Rows(0, 0)
        images, texts = stores_of(facts, self.options.augment, self.seed)
        return Rows(min(self.rows.images, images.rows), min(self.rows.texts, texts.rows))

    @property
    def tokens(self) -> int:
        """A text's usual length, of which a tower may take less."""
        lengths = [one.bytes_per_caption(self.options.captions.languages) for one in self.data.values()]
        return 2 + round(max(lengths) / 4) if any(lengths) else _TOKENS


# ---- in words


def lines(work: StageWork, times: Times, before: dict[Any, Rows]) -> Iterator[str]:
    """A stage's estimates in words. `before` are the rows that stages before it leave in the cache; it is extended."""
    name, how = work.stage, Message("measured") if times.measured else Message("by the number of operations")
    yield Message(
        "{}: {:,} steps of {:,} samples take about {} ({:.3g} s a step, {})",
        name,
        work.steps,
        sum(work.sizes.values()),
        duration(work.steps * times.step_s),
        times.step_s,
        how,
    )
    for number, pace in enumerate(times.teachers):
        yield from _teacher_lines(work, number, pace, before)
    disk = Message("checkpoints and model {}", size(work.run_bytes))
    if work.cache_bytes:
        disk = joined(", ", (Message("teacher cache {}", size(work.cache_bytes)), disk))
    yield Message("{}: takes disk space of about: {}", name, disk)


def teacher_rows_left(work: StageWork, number: int, before: dict[Any, Rows]) -> Rows:
    """What a teacher is still asked, after what is stored and what earlier stages will store."""
    if not work.options.teacher_cache:
        return work.asked
    key = (work.teachers[number].model, work.options.augment.model_dump_json())
    earlier, stored = before.get(key, Rows(0, 0)), work.cached(number)
    before[key] = Rows(max(earlier.images, work.rows.images), max(earlier.texts, work.rows.texts))
    have = Rows(max(earlier.images, stored.images), max(earlier.texts, stored.texts))
    return Rows(max(0, work.rows.images - have.images), max(0, work.rows.texts - have.texts))


def _teacher_lines(work: StageWork, number: int, pace: Pace | None, before: dict[Any, Rows]) -> Iterator[str]:
    left = teacher_rows_left(work, number, before)
    who = Message("the teacher") if len(work.teachers) == 1 else Message("teacher {}", number)
    asked = Message("{}: {} encodes about {:,} images and up to {:,} texts", work.stage, who, left.images, left.texts)
    if work.options.teacher_cache and left != work.rows:
        asked = Message(
            "{} (of {:,} and {:,}: the others are in the cache by then)", asked, work.rows.images, work.rows.texts
        )
    if pace is None:
        yield Message("{}; how long that takes is not known without its files", asked)
        return
    seconds, how = pace.seconds(left), Message("measured")
    if not pace.measured:
        how = Message("by the number of operations, within a factor of three")
    yield Message("{}: about {} ({})", asked, duration(seconds), how)
    if seconds > _LONG_S:
        yield Message("{}: that is shorter with {}", work.stage, joined(", ", _shorter(work)))


def long_teacher_work(work: StageWork, times: Times, before: dict[Any, Rows]) -> list[str]:
    """What is said before a run whose teachers take more than half an hour."""
    found = []
    for number, pace in enumerate(times.teachers):
        own = list(_teacher_lines(work, number, pace, before))
        found += own if len(own) > 1 else []
    return found


def _shorter(work: StageWork) -> Iterator[str]:
    if work.device == "cpu":
        yield Message("a GPU (--device cuda)")
    if work.options.teacher_cache and work.options.augmentations > 1:
        count = work.options.augmentations
        yield Message("fewer augmentations ({}.augmentations is {})", work.stage, count)
    if not work.options.teacher_cache:
        yield Message("a cache ({}.teacher_cache: true)", work.stage)
    if any(one.precision == "fp32" for one in work.teachers):
        yield Message("bf16 where the processor has it (teacher.precision: auto)")
    yield Message("fewer images, or a smaller teacher")


def duration(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3.5 h, 4 days."""
    if seconds < 100:
        return Message("{} s", math.ceil(seconds))
    if seconds < 6000:
        return Message("{:.0f} min", seconds / 60)
    if seconds < 172_800:
        return Message("{:.1f} h", seconds / 3600)
    return Message("{:.0f} days", seconds / 86_400)


def size(number: float) -> str:
    """A number of bytes in words."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number / 1e3:,.0f} kB"
