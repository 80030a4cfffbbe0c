"""A training stage before it begins, without its data: what it cannot do, by shape, and roughly what it takes.

Times are those of one real step and one batch of each teacher, in as many samples as take about half a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, islice

import torch
from PIL import Image
from torch.optim import Optimizer

from dcclip_cli.data.batch import OTHER, Batch, Texts
from dcclip_cli.data.preview import Preview
from dcclip_cli.errors import Message, joined
from dcclip_cli.model.hub_models import COPY_AGAIN, library_errors
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import ImageFeatures, OpenClipTowers, TextFeatures, Tokens, Towers
from dcclip_cli.progress import Silent
from dcclip_cli.text import duration_in_words, size_in_words
from dcclip_cli.train.losses.base import Outputs, TeacherLoss, Widths, layers_of, learns_from, student_layers
from dcclip_cli.train.losses.features import TokenFeaturesLoss
from dcclip_cli.train.optimizer import make_optimizer
from dcclip_cli.train.problems import warnings
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.student import checkpoint_gradients
from dcclip_cli.train.task import TrainingTask, shorter_dims
from dcclip_cli.train.teacher import Grid, LazyTeacher, TeacherFeatures, map_grids, widths
from dcclip_cli.train.teacher_cache import map_sizes, stores_of

_ENOUGH_S = 0.5  # of a measurement
_FP16, _FP32 = 2, 4
_BYTES_PER_TOKEN = 4  # of a caption in UTF-8: about a token for each English word and Chinese character
_TOKENS, _MOST_TOKENS = 16, 77  # of a text where nothing is known, and at most

Question = tuple[tuple[str | int, ...], Callable[[], object]]  # a key of the stage, and what may raise DcclipError


@dataclass(frozen=True)
class Rows:
    """How many different augmented images and captions are used, about."""

    images: int
    texts: int


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


@dataclass(eq=False)
class BlankStage(Stage):
    """A stage without weights: a student and teachers on the meta device, and previews of the data by kind.

    Of `blank_teachers`, by number, those are None whose files are not on this machine. Data that is still to be
    collected has no preview.
    """

    previews: dict[str, Preview] = field(default_factory=dict)
    blank_student: OpenClipTowers | None = None
    blank_teachers: Sequence[Towers | None] = ()

    @property
    def towers(self) -> OpenClipTowers:
        """The student."""
        assert self.blank_student is not None
        return self.blank_student

    def build(self, device: str = "meta") -> tuple[TrainingTask, Optimizer] | None:
        """The training task and its optimizer, with random features in place of teachers; None if one is not here."""
        layers = sorted({layer for loss in self.losses for layer in loss.teacher_layers_needed})
        teachers = [teacher for teacher in self.blank_teachers if teacher is not None]
        if len(teachers) < len(self.blank_teachers):
            return None
        grid = map_grids(self.towers)[-1]
        features = [_RandomTeacher(widths(teacher, layers), grid) for teacher in teachers]
        task = self.make_task(self.towers, features, self.towers.name).to(device)
        message = Message("{} has no ordered layers, which layer_decay needs", self.towers.name)
        with library_errors(message, Message("remove layer_decay")):
            return task, make_optimizer(task, self.options.optimizer.model_copy(update={"newton_schulz": "fp32"}))

    def questions(self) -> Iterator[Question]:
        """What is asked by key of the stage before it begins: a wrong value raises DcclipError."""
        for number, loss in enumerate(self.options.losses):
            key, teacher = ("losses", number), loss.teacher if isinstance(loss, TeacherLoss) else 0
            if loss.student_layers_needed:
                yield (*key, "student_layers"), partial(widths, self.towers, loss.student_layers_needed)
            blank = self.blank_teachers[teacher] if teacher < len(self.blank_teachers) else None
            if blank is not None and loss.teacher_layers_needed:
                yield (*key, "teacher_layers"), partial(widths, blank, loss.teacher_layers_needed)
        if self.options.gradient_checkpointing:
            yield ("gradient_checkpointing",), partial(checkpoint_gradients, self.towers.model, self.towers.name)
        yield ("dims",), partial(shorter_dims, self.options.dims, widths(self.towers).embedding)
        yield ("optimizer",), self.build

    # ---- steps, rows and bytes

    @cached_property
    def known_sizes(self) -> dict[str, int]:
        """Samples per step of each kind of data that has a preview."""
        return {kind: self.sizes[kind] for kind in self.previews}

    @cached_property
    def steps(self) -> int:
        """Training steps, about: an epoch is one of the first kind of data."""
        if self.options.steps or not self.previews:
            return self.options.steps or 0
        kind, preview = next(iter(self.previews.items()))
        return max(1, math.ceil((self.options.epochs or 0) * (preview.samples // self.sizes[kind])))

    @cached_property
    def rows(self) -> Rows:
        """The different images of the run, and at most how many different captions."""
        images, texts, options = 0, 0.0, self.options.captions
        limit = 1 if options.first == 1 and not options.second_caption else None  # captions of an image in a language
        for kind, preview in self.previews.items():
            drawn = self.steps * self.sizes[kind]
            if kind != "texts":
                images += min(preview.samples * self.options.augmentations, drawn)
            used = [captions[language][:limit] for captions in preview.captions for language in options.languages]
            in_steps = drawn * (1 + options.second_caption) * sum(map(bool, used))
            texts += min(preview.samples * sum(map(len, used)), in_steps) / max(1, len(preview.captions))
        return Rows(images, round(texts))

    def remaining_rows(self, number: int) -> Rows:
        """The rows that a teacher runs, but for those that its cache has, of whatever data."""
        live, rows = Rows(self.steps * self.images_per_step, self.steps * self.texts_per_step), self.rows
        if not self.options.teacher_cache:
            return live
        layers = layers_of(self.losses, number)
        if facts := LazyTeacher(self.teacher_options[number], self.device, Silent(), layers).known_facts:
            images, texts = stores_of(facts, self.options.augment, self.seed)
            rows = Rows(max(0, rows.images - images.rows), max(0, rows.texts - texts.rows))
        return rows if self.options.teacher_cache is True else Rows(live.images, rows.texts)

    @cached_property
    def cache_bytes(self) -> float:
        """Bytes that the teacher cache will take in addition, as far as the teachers are known."""
        total, grids = 0.0, map_grids(self.towers, student_layers(self.losses))
        for number, blank in enumerate(self.blank_teachers if self.options.teacher_cache else ()):
            losses = learns_from(self.losses, number)
            if blank is not None and any(loss.needs_teacher for loss in losses):
                wide, rows = widths(blank, layers_of(self.losses, number)), self.remaining_rows(number)
                sizes = map_sizes(losses, grids).items()
                maps = sum(size.height * size.width * wide.layer(layer) for layer, size in sizes)
                tokens = any(isinstance(loss, TokenFeaturesLoss) for loss in losses) and min(_MOST_TOKENS, self.tokens)
                text = wide.embedding + tokens * wide.text_tokens
                images = rows.images * (self.options.teacher_cache is True)
                total += images * (wide.embedding + maps) + rows.texts * text
        return _FP16 * total

    @property
    def run_bytes(self) -> int:
        """Bytes of the stage's folder: checkpoints, with one that is being written, the best weights, the model."""
        options = self.options
        copies = (options.keep_checkpoints + 1) * (3 + (options.ema is not None)) + (options.keep == "best") + 1
        return _FP32 * self.towers.parameters_count() * copies

    @property
    def images_per_step(self) -> int:
        return sum(size for kind, size in self.known_sizes.items() if kind != "texts")

    @property
    def texts_per_step(self) -> int:
        """At most, all languages together."""
        options, sizes = self.options.captions, self.known_sizes
        captioned = options.caption_fraction * sizes.get("pairs", 0) + sizes.get("texts", 0)
        return round(captioned * (1 + options.second_caption) * len(options.languages))

    @property
    def tokens(self) -> int:
        """A text's usual length, of which a tower may take less."""
        languages = self.options.captions.languages
        lengths = [preview.bytes_per_caption(languages) for preview in self.previews.values()]
        return 2 + round(max(lengths) / _BYTES_PER_TOKEN) if any(lengths) else _TOKENS


@dataclass(frozen=True)
class _RandomTeacher(TeacherFeatures):
    """Random features with a teacher's widths, and the student's grid, as in the teacher cache."""

    widths: Widths
    grid: Grid

    def features(self, batch: Batch) -> Outputs:
        device, images, wide = batch.pixels.device, len(batch.pixels), self.widths
        maps = {
            layer: torch.rand(images, wide.layer(layer), self.grid.height, self.grid.width, device=device)
            for layer in (-1, *wide.other_maps)
        }
        texts = {
            name: TextFeatures(
                torch.rand(len(texts.captions), wide.embedding, device=device),
                torch.rand(*texts.tokens.ids.shape, wide.text_tokens, device=device),
                texts.tokens.mask,
            )
            for name, texts in batch.texts.items()
        }
        image = ImageFeatures(torch.rand(images, wide.embedding, device=device), maps.pop(-1), maps)
        index = {name: texts.image_index for name, texts in batch.texts.items()}
        return Outputs(image, texts, index, torch.tensor(20.0, device=device))


def open_blank(teacher: Teacher) -> Towers | None:
    """The teacher without weights, after a picture and a text went through it; None where it is not here."""
    towers = teacher.source.blank()
    if towers is not None:
        with library_errors(Message("teacher {} cannot be used", teacher.model), COPY_AGAIN):
            widths(towers)
    return towers


# ---- times


def measure(stage: BlankStage, with_teachers: bool = True) -> Times:
    """Rough times of a step, and of the teachers that are here. The student of `stage` gets random weights."""
    options = stage.options.captions
    device, batch_size, step_s = stage.device, sum(stage.known_sizes.values()), None
    student = stage.towers.to_empty(device=device)
    with torch.no_grad():
        for tensor in student.parameters():
            tensor.normal_(std=0.02) if tensor.ndim > 1 else tensor.fill_(1)
        for buffer in student.buffers():
            buffer.zero_()
    student.model.visual.to(memory_format=torch.channels_last)
    if student.model.logit_bias is None and any(loss.uses_bias for loss in stage.losses):
        student.model.logit_bias = torch.nn.Parameter(torch.zeros((), device=device))
    if built := stage.build(device):
        task, optimizer = built
        side, languages = student.preprocessing.size if student.preprocessing else 224, list[str](options.languages)
        if options.second_caption:
            languages += [language + OTHER for language in options.languages]

        def step(samples: int) -> None:
            share = samples / batch_size
            images = min(stage.images_per_step, max(2, round(stage.images_per_step * share)))
            count = max(2, round(stage.texts_per_step * share / len(languages)))  # of a language's texts
            ids = torch.randint(4, 250, (count, min(stage.tokens, student.context_length)), device=device)
            ids[:, -1] = 2
            tokens, index = Tokens(ids, torch.ones_like(ids)).to(device), torch.arange(count, device=device)
            numbers, pixels = torch.zeros(images, dtype=torch.long), torch.rand(images, 3, side, side, device=device)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            texts = {name: Texts(index, [""] * count, tokens) for name in languages}
            batch = Batch(numbers, numbers, pixels, (), texts, max(0, count - images))
            total = sum(task(batch).values(), torch.zeros((), device=device))
            if total.requires_grad:  # not where a batch is too small for any of the losses
                total.backward()
            optimizer.step()
            optimizer.zero_grad()

        parts = stage.options.fewest_parts(stage.known_sizes, 1)
        step_s = batch_size * _seconds_per_sample(step, batch_size // parts, device)
    captions = chain.from_iterable(
        texts for preview in stage.previews.values() for captions in preview.captions for texts in captions.values()
    )
    texts = list(islice(captions, 64)) or ["a cat", "猫"]
    return Times(step_s, [_pace(teacher, texts, device) for teacher in stage.used_teachers if with_teachers])


def _seconds_per_sample(action: Callable[[int], object], most: int, device: str) -> float:
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


def _pace(teacher: Teacher, captions: list[str], device: str) -> Pace | None:
    """A teacher's pace; None where its files are not here."""
    if teacher.source.folder() is None:
        return None
    towers = teacher.load(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    blank = torch.from_numpy(towers.preprocess(Image.new("RGB", (256, 256)))).to(device)

    def images(count: int) -> None:
        towers.image_features(blank.expand(count, *blank.shape).contiguous(memory_format=torch.channels_last))

    def texts(count: int) -> None:
        towers.text_features_by_length(towers.tokenize(captions[:count]).to(device))

    with towers.as_teacher():
        return Pace(_seconds_per_sample(images, 64, device), _seconds_per_sample(texts, len(captions), device))


# ---- in words


def lines(stage: BlankStage, times: Times) -> Iterator[str]:
    """A stage's warnings and estimates in words."""
    yield from warnings(stage)
    yield from time_lines(stage, times)
    disk = Message("checkpoints and model {}", size_in_words(stage.run_bytes))
    if stage.cache_bytes:
        disk = joined(", ", (Message("teacher cache {}", size_in_words(stage.cache_bytes)), disk))
    yield Message("{}: disk space needed, approximately: {}", stage.name, disk)


def time_lines(stage: BlankStage, times: Times, with_nothing: bool = True) -> Iterator[str]:
    """What a stage's steps and teachers take; `with_nothing`, also teachers that have nothing left to encode."""
    name, steps = stage.name, Message("{:,} steps of {:,} samples", stage.steps, sum(stage.known_sizes.values()))
    if times.step_s is None:
        yield Message("{}: {}; the time is unknown without the teacher's files", name, steps)
    else:
        took = duration_in_words(stage.steps * times.step_s)
        yield Message("{}: {} take about {} ({:.3g} s per step)", name, steps, took, times.step_s)
    for number, pace in enumerate(times.teachers):
        rows = stage.remaining_rows(number)
        if not (with_nothing or rows.images or rows.texts):
            continue
        who = Message("the teacher") if len(times.teachers) == 1 else Message("teacher {}", number)
        encodes = Message("{}: {} encodes about {:,} images and up to {:,} texts", name, who, rows.images, rows.texts)
        if pace is None:
            yield Message("{}; the time is unknown without its files", encodes)
        else:
            took = duration_in_words(rows.images * pace.image_s + rows.texts * pace.text_s)
            yield Message("{}: about {}", encodes, took)
