"""A training stage before it begins, without its data: what it cannot do, by shape, and roughly what it takes.

Times are those of one real step and one batch of each teacher, in as many samples as take about half a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice

import torch
from PIL import Image
from torch.optim import Optimizer

from dcclip_cli.data.collator import OTHER, Batch, Texts
from dcclip_cli.data.preview import Preview
from dcclip_cli.errors import Message, joined
from dcclip_cli.model.hub_models import COPY_AGAIN, library_errors
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.towers import ImageFeatures, OpenClipTowers, TextFeatures, Tokens, Towers
from dcclip_cli.progress import Silent
from dcclip_cli.text import duration_in_words, size_in_words
from dcclip_cli.train.lora import add_lora
from dcclip_cli.train.losses.base import Outputs, TeacherLoss, Widths, layers_of, learns_from, student_layers
from dcclip_cli.train.losses.features import TokenFeaturesLoss
from dcclip_cli.train.optimizer import make_optimizer
from dcclip_cli.train.options import StageSetup, warnings
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


@dataclass(frozen=True)
class StageWork:
    """A stage with its student and teachers without weights, and previews of its data by kind, as far as they are here.

    `blank` are the teachers by number, None where a teacher's configuration is not here; `teachers` are their options.
    """

    setup: StageSetup
    data: Mapping[str, Preview]
    student: OpenClipTowers
    blank: Sequence[Towers | None]
    teachers: Sequence[Teacher]
    seed: int = 0
    device: str = "cpu"
    new_student: StudentOptions | None = None

    def build(self, device: str = "meta") -> tuple[TrainingTask, Optimizer] | None:
        """The training task and its optimizer, with random features in place of teachers; None if one is not here."""
        options, losses, grid = self.setup.options, self.setup.losses, map_grids(self.student)[-1]
        layers = sorted({layer for loss in losses for layer in loss.teacher_layers_needed})
        if any(one is None for one in self.blank):
            return None
        teachers = [_RandomTeacher(widths(one, layers), grid) for one in self.blank if one is not None]
        if options.lora:
            add_lora(self.student.model, options.lora, self.setup.lock, self.seed)
        task = TrainingTask(self.student, losses, teachers, lock=self.setup.lock).to(device)
        what = Message("{} has no layers in the order that layer_decay needs", self.student.name)
        with library_errors(what, Message("omit layer_decay")):
            return task, make_optimizer(task, options.optimizer.model_copy(update={"newton_schulz": "fp32"}))

    def questions(self) -> Iterator[Question]:
        """What is asked by key of the stage before it begins: a wrong value raises DcclipError."""
        options = self.setup.options
        for number, loss in enumerate(self.setup.listed_losses):
            at, teacher = ("losses", number), loss.teacher if isinstance(loss, TeacherLoss) else 0
            if loss.student_layers_needed:
                yield (*at, "student_layers"), partial(widths, self.student, loss.student_layers_needed)
            blank = self.blank[teacher] if teacher < len(self.blank) else None
            if blank is not None and loss.teacher_layers_needed:
                yield (*at, "teacher_layers"), partial(widths, blank, loss.teacher_layers_needed)
        if options.gradient_checkpointing:
            yield ("gradient_checkpointing",), partial(checkpoint_gradients, self.student.model, self.student.name)
        yield ("dims",), partial(shorter_dims, options.dims, widths(self.student).embedding)
        yield ("optimizer",), self.build

    # ---- steps, rows and bytes

    @cached_property
    def steps(self) -> int:
        """Training steps, about: an epoch is one of the first kind of data."""
        options, sizes = self.setup.options, self.setup.sizes
        if options.steps or not self.data:
            return options.steps or 0
        kind, first = next(iter(self.data.items()))
        return max(1, math.ceil((options.epochs or 0) * (first.samples // sizes[kind])))

    @cached_property
    def rows(self) -> Rows:
        """The different images of the run, and at most how many different captions."""
        options, images, texts = self.setup.options, 0, 0.0
        chosen = options.captions
        for kind, one in self.data.items():
            drawn = self.steps * self.setup.sizes[kind]
            if kind != "texts":
                images += min(one.samples * options.augmentations, drawn)
            most = 1 if chosen.first == 1 and not chosen.second_caption else None
            several = [found[language][:most] for found in one.captions for language in chosen.languages]
            in_steps = drawn * (1 + chosen.second_caption) * sum(map(bool, several))
            texts += min(one.samples * sum(map(len, several)), in_steps) / max(1, len(one.captions))
        return Rows(images, round(texts))

    def left(self, number: int) -> Rows:
        """The rows that a teacher runs, but for those that its cache has, of whatever data."""
        if not self.setup.options.teacher_cache:
            return Rows(self.steps * self.images_per_step, self.steps * self.texts_per_step)
        layers = layers_of(self.setup.losses, number)
        facts = LazyTeacher(self.teachers[number], self.device, Silent(), layers).known_facts
        if facts is None:
            return self.rows
        images, texts = stores_of(facts, self.setup.options.augment, self.seed)
        return Rows(max(0, self.rows.images - images.rows), max(0, self.rows.texts - texts.rows))

    @cached_property
    def cache_bytes(self) -> float:
        """Bytes that the teacher cache will take in addition, as far as the teachers are known."""
        total, losses = 0.0, self.setup.losses
        grids = map_grids(self.student, student_layers(losses))
        for number, blank in enumerate(self.blank if self.setup.options.teacher_cache else ()):
            own = learns_from(losses, number)
            if blank is not None and any(loss.needs_teacher for loss in own):
                wide, left = widths(blank, layers_of(losses, number)), self.left(number)
                maps = sum(size.height * size.width * wide.layer(at) for at, size in map_sizes(own, grids).items())
                tokens = any(isinstance(loss, TokenFeaturesLoss) for loss in own) and min(_MOST_TOKENS, self.tokens)
                total += left.images * (wide.embedding + maps) + left.texts * (
                    wide.embedding + tokens * wide.text_tokens
                )
        return _FP16 * total

    @property
    def run_bytes(self) -> int:
        """Bytes of the stage's folder: two checkpoints while one replaces the other, the best weights, the model."""
        options = self.setup.options
        copies = 2 * (3 + (options.ema is not None)) + (options.keep == "best") + 1
        return _FP32 * self.student.parameters_count() * copies

    @property
    def images_per_step(self) -> int:
        return sum(size for kind, size in self.setup.sizes.items() if kind != "texts")

    @property
    def texts_per_step(self) -> int:
        """At most, all languages together."""
        chosen, sizes = self.setup.options.captions, self.setup.sizes
        captioned = chosen.caption_fraction * sizes.get("pairs", 0) + sizes.get("texts", 0)
        return round(captioned * (1 + chosen.second_caption) * len(chosen.languages))

    @property
    def tokens(self) -> int:
        """A text's usual length, of which a tower may take less."""
        lengths = [one.bytes_per_caption(self.setup.options.captions.languages) for one in self.data.values()]
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
                torch.rand(len(one.captions), wide.embedding, device=device),
                torch.rand(*one.tokens.ids.shape, wide.text_tokens, device=device),
                one.tokens.mask,
            )
            for name, one in batch.texts.items()
        }
        image = ImageFeatures(torch.rand(images, wide.embedding, device=device), maps.pop(-1), maps)
        index = {name: one.image_index for name, one in batch.texts.items()}
        return Outputs(image, texts, index, torch.tensor(20.0, device=device))


def open_blank(teacher: Teacher) -> Towers | None:
    """The teacher without weights, after a picture and a text went through it; None where it is not here."""
    towers = teacher.source.blank()
    if towers is not None:
        with library_errors(Message("teacher {} cannot be used", teacher.model), COPY_AGAIN):
            widths(towers)
    return towers


# ---- times


def measure(work: StageWork) -> Times:
    """Rough times of a step and of the teachers that are here. The student of `work` gets random weights."""
    student, step_s = work.student.to_empty(device=work.device), None
    with torch.no_grad():
        for tensor in student.parameters():
            tensor.normal_(std=0.02) if tensor.ndim > 1 else tensor.fill_(1)
        for buffer in student.buffers():
            buffer.zero_()
    student.model.visual.to(memory_format=torch.channels_last)
    if student.model.logit_bias is None and any(loss.uses_bias for loss in work.setup.losses):
        student.model.logit_bias = torch.nn.Parameter(torch.zeros((), device=work.device))
    if built := work.build(work.device):
        task, optimizer = built

        def step(samples: int) -> None:
            total = sum(task(_batch(work, samples)).values(), torch.zeros((), device=work.device))
            if total.requires_grad:  # not where a batch is too small for any of the losses
                total.backward()
            optimizer.step()
            optimizer.zero_grad()

        batch_size = sum(work.setup.sizes.values())
        step_s = batch_size * _seconds_each(step, batch_size // work.setup.options.fewest_parts, work.device)
    return Times(step_s, [_pace(work, teacher) for teacher in work.teachers])


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


def _batch(work: StageWork, samples: int) -> Batch:
    """A batch of so many of a step's samples, of random pixels and tokens."""
    share, student = samples / sum(work.setup.sizes.values()), work.student
    side = student.preprocessing.size if student.preprocessing else 224
    images = min(work.images_per_step, max(2, round(work.images_per_step * share)))
    languages: tuple[str, ...] = work.setup.options.captions.languages
    if work.setup.options.captions.second_caption:
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
    if teacher.source.folder() is None:
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


def lines(work: StageWork, times: Times) -> Iterator[str]:
    """A stage's warnings and estimates in words."""
    yield from warnings(work.setup, work.new_student, work.steps)
    yield from time_lines(work, times)
    disk = Message("checkpoints and model {}", size_in_words(work.run_bytes))
    if work.cache_bytes:
        disk = joined(", ", (Message("teacher cache {}", size_in_words(work.cache_bytes)), disk))
    yield Message("{}: takes disk space of about: {}", work.setup.name, disk)


def time_lines(work: StageWork, times: Times, with_nothing: bool = True) -> Iterator[str]:
    """What a stage's steps and teachers take; `with_nothing`, also teachers that have nothing left to encode."""
    name, steps = work.setup.name, Message("{:,} steps of {:,} samples", work.steps, sum(work.setup.sizes.values()))
    if times.step_s is None:
        yield Message("{}: {}; how long they take is not known without the teacher's files", name, steps)
    else:
        took = duration_in_words(work.steps * times.step_s)
        yield Message("{}: {} take roughly {} ({:.3g} s a step)", name, steps, took, times.step_s)
    for number, pace in enumerate(times.teachers):
        left = work.left(number)
        if not (with_nothing or left.images or left.texts):
            continue
        who = Message("the teacher") if len(work.teachers) == 1 else Message("teacher {}", number)
        asked = Message("{}: {} encodes about {:,} images and up to {:,} texts", name, who, left.images, left.texts)
        if pace is None:
            yield Message("{}; how long that takes is not known without its files", asked)
        else:
            yield Message(
                "{}: roughly {}", asked, duration_in_words(left.images * pace.image_s + left.texts * pace.text_s)
            )
