"""Estimates of a training stage before it begins: steps, rows that its teachers compute, disk space and rough times.

Times are those of one real step and one batch of each teacher, in as many samples as take about half a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from PIL import Image

from dcclip_cli.data.collator import OTHER, Batch, Texts
from dcclip_cli.data.preview import Preview
from dcclip_cli.errors import Message, joined
from dcclip_cli.model.blank import local_folder
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import Tokens
from dcclip_cli.progress import Silent
from dcclip_cli.text import duration_in_words, size_in_words
from dcclip_cli.train.dry_run import Shapes
from dcclip_cli.train.feature_shapes import Grid, map_grids, map_sizes, widths
from dcclip_cli.train.lazy_teacher import LazyTeacher
from dcclip_cli.train.losses.base import Loss, Tower, Widths, learns_from
from dcclip_cli.train.losses.features import TokenFeaturesLoss
from dcclip_cli.train.options import TrainOptions
from dcclip_cli.train.teacher import layers_of
from dcclip_cli.train.teacher_cache import stores_of

_ENOUGH_S = 0.5  # of a measurement
_LONG_S = 1800  # of teacher work for which something shorter is named
_FP16, _FP32 = 2, 4
_BYTES_PER_TOKEN = 4  # of a caption in UTF-8: about a token for each English word and Chinese character
_TOKENS, _MOST_TOKENS = 16, 77  # of a text where nothing is known, and at most


@dataclass(frozen=True)
class Rows:
    """How many different augmented images and captions are used, about."""

    images: int
    texts: int

    def less(self, other: Rows) -> Rows:
        return Rows(max(0, self.images - other.images), max(0, self.texts - other.texts))


@dataclass(frozen=True)
class Pace:
    """Seconds that a teacher takes for an image and for a text."""

    image_s: float
    text_s: float


@dataclass(frozen=True)
class Times:
    """Seconds of a stage's step, and the paces of its teachers; None where a teacher's files are not here."""

    step_s: float | None
    teachers: Sequence[Pace | None]


@dataclass(frozen=True)
class StageWork:
    """What decides a stage's time and space: options, data by kind with samples per step, and shapes.

    `teachers` are the options of `shapes.teachers`, `lock` is a tower that is not trained.
    """

    stage: str
    options: TrainOptions
    data: Mapping[str, Preview]
    sizes: Mapping[str, int]
    shapes: Shapes
    teachers: Sequence[Teacher]
    seed: int = 0
    device: str = "cpu"
    lock: Tower | None = None

    @cached_property
    def steps(self) -> int:
        return steps_of(self.options, self.data, self.sizes)

    @cached_property
    def rows(self) -> Rows:
        """The different images and captions of a run."""
        return rows_used(self.options, self.data, self.sizes, self.steps)

    @property
    def images_per_step(self) -> int:
        return sum(size for kind, size in self.sizes.items() if kind != "texts")

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
    def cache_bytes(self) -> float:
        """Bytes that the teacher cache will take in addition, as far as the teachers are known."""
        if not self.options.teacher_cache:
            return 0.0
        layers = {layer for loss in self.shapes.losses for layer in loss.student_layers_needed}
        grids = map_grids(self.shapes.student, sorted(layers))
        total = 0.0
        for number, teacher in enumerate(self.shapes.teachers):
            losses = learns_from(self.shapes.losses, number)
            if teacher is not None and any(loss.needs_teacher for loss in losses):
                wide, left = widths(teacher, layers_of(losses, number)), self.rows.less(self.cached(number))
                total += teacher_cache_bytes(wide, losses, self.options, self.data, grids, left)
        return total

    @property
    def run_bytes(self) -> int:
        """Bytes of checkpoints and the model."""
        return checkpoint_bytes(self.shapes.student.parameters_count(), self.options)

    def cached(self, number: int) -> Rows:
        """How many of a teacher's rows are stored already, at most: rows of other data are counted as well."""
        layers = layers_of(self.shapes.losses, number)
        facts = LazyTeacher(self.teachers[number], self.device, Silent(), layers).known_facts
        if facts is None:
            return Rows(0, 0)
        images, texts = stores_of(facts, self.options.augment, self.seed)
        return Rows(min(self.rows.images, images.rows), min(self.rows.texts, texts.rows))

    @property
    def tokens(self) -> int:
        """A text's usual length, of which a tower may take less."""
        lengths = [one.bytes_per_caption(self.options.captions.languages) for one in self.data.values()]
        return 2 + round(max(lengths) / _BYTES_PER_TOKEN) if any(lengths) else _TOKENS


# ---- rows and bytes


def steps_of(options: TrainOptions, data: Mapping[str, Preview], sizes: Mapping[str, int]) -> int:
    """Training steps of a run, about: an epoch is one of the first kind of data."""
    if options.steps or not data:
        return options.steps or 0
    kind, first = next(iter(data.items()))
    return max(1, math.ceil((options.epochs or 0) * (first.samples // sizes[kind])))


def rows_used(options: TrainOptions, data: Mapping[str, Preview], sizes: Mapping[str, int], steps: int) -> Rows:
    """The different images and captions of a run, for data by kind (pairs, images, texts) and `sizes` per step."""
    images = texts = 0.0
    for kind, one in data.items():
        drawn = steps * sizes[kind]
        if kind != "texts":
            images += min(one.samples * options.augmentations, drawn)
        texts += min(one.samples, drawn) * _captions_used(one, options, drawn / max(1, one.samples))
    return Rows(round(images), round(texts))


def _captions_used(one: Preview, options: TrainOptions, epochs: float) -> float:
    """Mean number of different captions of a sample that so many epochs use."""
    chosen = options.captions
    most = 1.0 if chosen.first == 1 and not chosen.second_caption else (1 + chosen.second_caption) * max(1.0, epochs)
    used = sum(min(len(several[language]), most) for several in one.captions for language in chosen.languages)
    return used / max(1, len(one.captions))


def teacher_cache_bytes(
    widths: Widths,
    losses: Sequence[Loss],
    options: TrainOptions,
    data: Mapping[str, Preview],
    grids: Mapping[int, Grid],
    rows: Rows,
) -> float:
    """Bytes of a teacher's features that `losses` need; `grids` are those of the student's maps, by layer."""
    image, text = float(widths.embedding), float(widths.embedding)
    for layer, grid in map_sizes(losses, grids).items():
        image += grid.height * grid.width * widths.layer(layer)
    if any(isinstance(loss, TokenFeaturesLoss) for loss in losses):
        length = max((one.bytes_per_caption(options.captions.languages) for one in data.values()), default=0.0)
        text += widths.text_tokens * min(_MOST_TOKENS, 2 + length / _BYTES_PER_TOKEN)
    return _FP16 * (rows.images * image + rows.texts * text)


def checkpoint_bytes(parameters: int, options: TrainOptions) -> int:
    """Bytes of a stage's folder: two checkpoints while one replaces the other, the best weights, the saved model."""
    copies = 2 * (3 + (options.ema is not None)) + (options.keep == "best") + 1
    return _FP32 * parameters * copies


# ---- times


def measure(work: StageWork) -> Times:
    """Rough times of a step and of the teachers that are here. The student of `work` gets random weights."""
    return Times(_step_seconds(work), [_pace(work, teacher) for teacher in work.teachers])


def _seconds_each(action: Callable[[int], object], most: int, device: str) -> float:
    """Seconds for one of the samples that an action works on: for as many as take half a second, at most `most`."""

    def timed(count: int) -> float:
        began = time.perf_counter()
        action(count)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    count = min(most, 8)
    while (seconds := min(timed(count), timed(count))) < _ENOUGH_S and count < most:  # a first time takes longer
        count = min(most, 4 * count)
    return seconds / count


def _step_seconds(work: StageWork) -> float | None:
    student = work.shapes.student.to_empty(device=work.device)
    with torch.no_grad():
        for tensor in student.parameters():
            tensor.normal_(std=0.02) if tensor.ndim > 1 else tensor.fill_(1)
        for buffer in student.buffers():
            buffer.zero_()
    student.model.visual.to(memory_format=torch.channels_last)
    if student.model.logit_bias is None and any(loss.uses_bias for loss in work.shapes.losses):
        student.model.logit_bias = torch.nn.Parameter(torch.zeros((), device=work.device))
    if (built := work.shapes.build(work.options, work.device, work.lock)) is None:
        return None
    task, optimizer = built

    def step(samples: int) -> None:
        total = sum(task(_batch(work, samples)).values(), torch.zeros((), device=work.device))
        if total.requires_grad:  # not where a batch is too small for any of the losses
            total.backward()
        optimizer.step()
        optimizer.zero_grad()

    whole = sum(work.sizes.values())
    return whole * _seconds_each(step, whole // work.options.fewest_parts, work.device)


def _batch(work: StageWork, samples: int) -> Batch:
    """A batch of so many of a step's samples, of random pixels and tokens."""
    share, student = samples / sum(work.sizes.values()), work.shapes.student
    side = student.preprocessing.size if student.preprocessing else 224
    images = min(work.images_per_step, max(2, round(work.images_per_step * share)))
    languages: tuple[str, ...] = work.options.captions.languages
    if work.options.captions.second_caption:
        languages += tuple(one + OTHER for one in languages)
    each = max(2, round(work.texts_per_step * share / len(languages)))
    ids = torch.randint(4, 250, (each, min(work.tokens, student.context_length)), device=work.device)
    ids[:, -1] = 2
    tokens, index = Tokens(ids, torch.ones_like(ids)).to(work.device), torch.arange(each, device=work.device)
    numbers = torch.zeros(images, dtype=torch.long)
    pixels = torch.rand(images, 3, side, side, device=work.device).contiguous(memory_format=torch.channels_last)
    texts = {name: Texts(index, [""] * each, tokens) for name in languages}
    return Batch(numbers, numbers, pixels, (), texts, max(0, each - images))


def _pace(work: StageWork, teacher: Teacher) -> Pace | None:
    """A teacher's pace; None where its files are not here."""
    if local_folder(teacher) is None:
        return None
    towers = teacher.load(work.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    blank = torch.from_numpy(towers.preprocess(Image.new("RGB", (256, 256)))).to(work.device)
    several = (texts for one in work.data.values() for found in one.captions for texts in found.values())
    captions = list(islice(chain.from_iterable(several), 64)) or ["a cat", "猫"]

    def images(count: int) -> None:
        towers.image_features(blank.expand(count, *blank.shape).contiguous(memory_format=torch.channels_last))

    def texts(count: int) -> None:
        towers.text_features_by_length(towers.tokenize(captions[:count]).to(work.device))

    with towers.as_teacher():
        return Pace(_seconds_each(images, 64, work.device), _seconds_each(texts, len(captions), work.device))


# ---- in words


def lines(work: StageWork, times: Times, before: dict[Any, Rows]) -> Iterator[str]:
    """A stage's estimates in words. `before` are the rows that stages before it leave in the cache; it is extended."""
    name, steps = work.stage, Message("{:,} steps of {:,} samples", work.steps, sum(work.sizes.values()))
    if times.step_s is None:
        yield Message("{}: {}; how long they take is not known without the teacher's files", name, steps)
    else:
        took = duration_in_words(work.steps * times.step_s)
        yield Message("{}: {} take roughly {} ({:.3g} s a step)", name, steps, took, times.step_s)
    for number, pace in enumerate(times.teachers):
        yield from _teacher_lines(work, number, pace, before)
    disk = Message("checkpoints and model {}", size_in_words(work.run_bytes))
    if work.cache_bytes:
        disk = joined(", ", (Message("teacher cache {}", size_in_words(work.cache_bytes)), disk))
    yield Message("{}: takes disk space of about: {}", name, disk)


def _rows_left(work: StageWork, number: int, before: dict[Any, Rows]) -> Rows:
    """What a teacher is still asked, after what is stored and what earlier stages will store."""
    if not work.options.teacher_cache:
        return Rows(work.steps * work.images_per_step, work.steps * work.texts_per_step)
    key = (work.teachers[number].model, work.options.augment.model_dump_json())
    earlier = before.get(key, Rows(0, 0))
    before[key] = Rows(max(earlier.images, work.rows.images), max(earlier.texts, work.rows.texts))
    return min(work.rows.less(earlier), work.rows.less(work.cached(number)), key=lambda one: one.images)


def _teacher_lines(work: StageWork, number: int, pace: Pace | None, before: dict[Any, Rows]) -> Iterator[str]:
    left = _rows_left(work, number, before)
    who = Message("the teacher") if len(work.teachers) == 1 else Message("teacher {}", number)
    asked = Message("{}: {} encodes about {:,} images and up to {:,} texts", work.stage, who, left.images, left.texts)
    if work.options.teacher_cache and left != work.rows:
        asked = Message(
            "{} (of {:,} and {:,}: the others are in the cache by then)", asked, work.rows.images, work.rows.texts
        )
    if pace is None:
        yield Message("{}; how long that takes is not known without its files", asked)
        return
    seconds = left.images * pace.image_s + left.texts * pace.text_s
    yield Message("{}: roughly {}", asked, duration_in_words(seconds))
    if seconds > _LONG_S:
        yield Message("{}: that is shorter with {}", work.stage, joined(", ", _shorter(work)))


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
