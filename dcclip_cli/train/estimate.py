"""A training stage before it begins, without its data: what it cannot do, by shape, and roughly
what it takes.

Times and memory are those of the trainer's own steps and of a batch of each teacher whose features
are cached, in as many samples as take about half a second; on a GPU, of whole steps.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.optim import Optimizer

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.files import write_json
from dcclip_cli.core.machine import loading_processes, memory, peak_memory_bytes
from dcclip_cli.core.processes import calls, process_pool
from dcclip_cli.core.progress import Silent
from dcclip_cli.core.text import duration_in_words, size_in_words
from dcclip_cli.data.batch import Batch
from dcclip_cli.data.labels import Labels
from dcclip_cli.data.pair import ConcatDataset, PairDataset
from dcclip_cli.data.preview import Preview, PreviewDataset
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler, TrainingData
from dcclip_cli.model.hub_models import COPY_AGAIN, library_errors
from dcclip_cli.model.teachers import Teacher
from dcclip_cli.model.tokenizer import END_ID
from dcclip_cli.model.towers import ImageFeatures, OpenClipTowers, TextFeatures, Tokens, Towers
from dcclip_cli.train.compute import (
    COMPUTED_IN,
    is_out_of_memory,
    join_processes,
    use_kernels,
    use_threads,
)
from dcclip_cli.train.loading import load_batches
from dcclip_cli.train.losses.base import (
    Outputs,
    TeacherLoss,
    Widths,
    layers_of,
    learns_from,
    student_layers,
)
from dcclip_cli.train.losses.features import TokenFeaturesLoss
from dcclip_cli.train.optimizer import make_optimizer
from dcclip_cli.train.problems import warnings
from dcclip_cli.train.speed import peak_bytes
from dcclip_cli.train.stage import Stage
from dcclip_cli.train.student import Student, checkpoint_gradients
from dcclip_cli.train.task import TrainingTask, shorter_dims
from dcclip_cli.train.teacher import (
    Grid,
    LazyTeacher,
    OnlineTeacher,
    TeacherFeatures,
    map_grids,
    widths,
)
from dcclip_cli.train.teacher_cache import folder_of, map_sizes, stores_of
from dcclip_cli.train.trainer import Trainer

_ENOUGH_S = 0.5  # that a measurement takes at least; a step, twice that in CPU time
_FP16 = 2
_FP32 = 4
_BYTES_PER_TOKEN = (
    4  # of a caption in UTF-8: about a token for each English word and Chinese character
)
_MEMORY_HINT = Message("split batches into parts: set images_per_part or a larger accumulate")
# of a text where nothing is known, and at most
_TOKENS = 16
_MOST_TOKENS = 77
_CLASSES = 20

Question = tuple[
    tuple[str | int, ...], Callable[[], object]
]  # a key of the stage, and what may raise DcclipError


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
    """Seconds of a stage's step, and the paces of its teachers; None where a teacher's files are
    not here.

    Those of teachers that run in each step are part of it. `peak_bytes`: of a process; `parts`: of
    each process's share, if memory ran out with as few as the options say.
    """

    step_s: float | None
    teachers: Sequence[Pace | None] = ()
    peak_bytes: float = 0
    parts: int | None = None


@dataclass(eq=False)
class BlankStage(Stage):
    """A stage without weights: a student and teachers on the meta device, and previews of the data
    by kind.

    So many `processes` are to train it. Of `blank_teachers`, by number, those are None whose files
    are not on this machine. Data that is still to be collected has no preview.
    """

    previews: dict[str, Preview] = field(default_factory=dict)
    blank_student: OpenClipTowers | None = None
    blank_teachers: Sequence[Towers | None] = ()
    processes: int = 1
    enough_s: float = field(default_factory=lambda: _ENOUGH_S)

    @property
    def towers(self) -> OpenClipTowers:
        assert self.blank_student is not None
        return self.blank_student

    @cached_property
    def random_features(self) -> "list[_RandomTeacher]":
        """Random features in place of the teachers that are here, as the teacher cache has them."""
        layers = sorted({layer for loss in self.losses for layer in loss.teacher_layers_needed})
        teachers = [teacher for teacher in self.blank_teachers if teacher is not None]
        grid = map_grids(self.towers)[-1]
        return [_RandomTeacher(widths(teacher, layers), grid) for teacher in teachers]

    def build(self) -> tuple[TrainingTask, Optimizer] | None:
        """The training task and its optimizer without weights; None if a teacher is not here."""
        if len(self.random_features) < len(self.blank_teachers):
            return None
        task = self.make_task(self.towers, self.random_features, self.towers.name).to("meta")
        message = Message("{} has no ordered layers, which layer_decay needs", self.towers.name)
        with library_errors(message, Message("remove layer_decay")):
            return task, make_optimizer(
                task, self.options.optimizer.model_copy(update={"newton_schulz": "fp32"})
            )

    caches = ()
    identity = {}

    @cached_property
    def training(self) -> TrainingData:
        """As many samples as were counted, with the previews' images and captions."""
        datasets: dict[str, PairDataset] = {
            kind: PreviewDataset(preview, kind, self.sizes[kind])
            for kind, preview in self.previews.items()
        }
        if "pairs" in datasets and self.previews["pairs"].embeddings:
            shape = len(datasets["pairs"]), widths(self.towers).embedding
            datasets["pairs"].embeddings = np.broadcast_to(np.float32(0), shape)
        joined = ConcatDataset(list(datasets.values()))
        samplers = (
            EpochBatchSampler(dataset, self.sizes[kind], self.seed, first=first)
            for (kind, dataset), first in zip(datasets.items(), joined.firsts, strict=False)
        )
        dataset = joined if len(datasets) > 1 else next(iter(datasets.values()))
        return TrainingData(dataset, MixedBatchSampler(tuple(samplers)), datasets)

    @cached_property
    def labels(self) -> Labels | None:
        """Labels of a usual number of classes, where a loss needs some."""
        if not any(loss.needs_labels for loss in self.losses):
            return None
        names = [f"class {number}" for number in range(_CLASSES)]
        of_samples = np.zeros(len(self.training.dataset) if self.previews else 0, np.int64)
        languages = dict.fromkeys(self.options.captions.languages, names)
        return Labels(languages, of_samples, np.ones(_CLASSES, np.int64))

    @cached_property
    def student(self) -> Student:
        """The student with random weights, and texts of random tokens, as many as they are likely
        to have.
        """
        towers = self.towers.to_empty(device=self.device)
        with torch.no_grad():
            for tensor in towers.parameters():
                tensor.normal_(std=0.02) if tensor.ndim > 1 else tensor.fill_(1)
            for name, buffer in towers.named_buffers():
                buffer.fill_(name.endswith("running_var"))  # frozen batch norms divide by its root
        towers.model.visual.to(memory_format=torch.channels_last)
        limit = towers.context_length
        rows = min(250, towers.vocabulary_rows)

        def tokenize(texts: list[str]) -> Tokens:
            lengths = torch.tensor(
                [min(limit, 2 + round(len(text.encode()) / _BYTES_PER_TOKEN)) for text in texts]
            )
            longest = int(lengths.max()) if towers.takes_any_length else limit
            mask = (torch.arange(longest) < lengths[:, None]).long()
            return Tokens(
                (torch.randint(4, rows, mask.shape) * mask).scatter(
                    1, lengths[:, None] - 1, END_ID
                ),
                mask,
            )

        towers.tokenize = tokenize  # type: ignore[method-assign]
        student = Student(towers, {"embed_dim": widths(towers).embedding, "vision_cfg": {}}, None)  # type: ignore[arg-type]
        return student.with_bias() if any(loss.uses_bias for loss in self.losses) else student

    @cached_property
    def features(self) -> list[TeacherFeatures]:
        """Random features in place of those in the teacher cache; teachers that run in each step
        do so.
        """
        if self.options.teacher_cache is True:
            return [*self.random_features]
        features: list[TeacherFeatures] = []
        for number, teacher in enumerate(self.teachers):
            layers = layers_of(self.losses, number)
            live = OnlineTeacher(teacher.towers, number, layers, widths(teacher.towers, layers))
            features.append(
                replace(self.random_features[number], live=live)
                if self.options.teacher_cache
                else live
            )
        return features

    def questions(self) -> Iterator[Question]:
        """What is asked by key of the stage before it begins: a wrong value raises DcclipError."""
        for number, loss in enumerate(self.options.losses):
            key = ("losses", number)
            teacher = loss.teacher if isinstance(loss, TeacherLoss) else 0
            if loss.student_layers_needed:
                yield (
                    (*key, "student_layers"),
                    partial(widths, self.towers, loss.student_layers_needed),
                )
            blank = self.blank_teachers[teacher] if teacher < len(self.blank_teachers) else None
            if blank is not None and loss.teacher_layers_needed:
                yield (*key, "teacher_layers"), partial(widths, blank, loss.teacher_layers_needed)
        if self.options.gradient_checkpointing:
            yield (
                ("gradient_checkpointing",),
                partial(checkpoint_gradients, self.towers.model, self.towers.name),
            )
        yield ("dims",), partial(shorter_dims, self.options.dims, widths(self.towers).embedding)
        yield ("optimizer",), self.build

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
        images = 0
        texts = 0.0
        options = self.options.captions
        limit = (
            1 if options.first == 1 and not options.second_caption else None
        )  # captions of an image in a language
        for kind, preview in self.previews.items():
            drawn = self.steps * self.sizes[kind]
            if kind != "texts":
                images += min(preview.samples * self.options.augmentations, drawn)
            used = [
                captions[language][:limit]
                for captions in preview.captions
                for language in options.languages
            ]
            in_steps = drawn * (1 + options.second_caption) * sum(map(bool, used))
            texts += min(preview.samples * sum(map(len, used)), in_steps) / max(
                1, len(preview.captions)
            )
        return Rows(images, round(texts))

    def remaining_rows(self, number: int) -> Rows:
        """The rows that a teacher runs, but for those that its cache has, of whatever data."""
        options = self.options.captions
        sizes = self.known_sizes
        rows = self.rows
        images = sum(size for kind, size in sizes.items() if kind != "texts")
        captioned = options.caption_fraction * sizes.get("pairs", 0) + sizes.get("texts", 0)
        texts = round(captioned * (1 + options.second_caption) * len(options.languages))  # at most
        live = Rows(self.steps * images, self.steps * texts)
        if not self.options.teacher_cache:
            return live
        layers = layers_of(self.losses, number)
        if facts := LazyTeacher(
            self.teacher_options[number], self.device, Silent(), layers
        ).known_facts:
            of_images, of_texts = stores_of(
                folder_of(facts, self.device), self.options.augment, self.seed
            )
            rows = Rows(max(0, rows.images - of_images.rows), max(0, rows.texts - of_texts.rows))
        return rows if self.options.teacher_cache is True else Rows(live.images, rows.texts)

    @cached_property
    def cache_bytes(self) -> float:
        """Bytes that the teacher cache will take in addition, as far as the teachers are known."""
        total = 0.0
        grids = map_grids(self.towers, student_layers(self.losses))
        for number, blank in enumerate(self.blank_teachers if self.options.teacher_cache else ()):
            losses = learns_from(self.losses, number)
            if blank is not None and any(loss.needs_teacher for loss in losses):
                wide = widths(blank, layers_of(self.losses, number))
                rows = self.remaining_rows(number)
                sizes = map_sizes(losses, grids).items()
                maps = sum(size.height * size.width * wide.layer(layer) for layer, size in sizes)
                tokens = any(isinstance(loss, TokenFeaturesLoss) for loss in losses) and min(
                    _MOST_TOKENS, self.tokens
                )
                text = wide.embedding + tokens * wide.text_tokens
                images = rows.images * (self.options.teacher_cache is True)
                total += images * (wide.embedding + maps) + rows.texts * text
        return _FP16 * total

    @property
    def run_bytes(self) -> int:
        """Bytes of the stage's folder: checkpoints, with one that is being written, the best
        weights, the model.
        """
        options = self.options
        copies = (
            (options.keep_checkpoints + 1) * (3 + (options.ema is not None))
            + (options.keep == "best")
            + 1
        )
        return _FP32 * self.towers.parameters_count() * copies

    @property
    def tokens(self) -> int:
        """A text's usual length, of which a tower may take less."""
        languages = self.options.captions.languages
        lengths = [preview.bytes_per_caption(languages) for preview in self.previews.values()]
        return 2 + round(max(lengths) / _BYTES_PER_TOKEN) if any(lengths) else _TOKENS


@dataclass(frozen=True)
class _RandomTeacher(TeacherFeatures):
    """Random features with a teacher's widths, and the student's grid, as in the teacher cache;
    images may be live.
    """

    widths: Widths
    grid: Grid
    live: OnlineTeacher | None = None

    def features(self, batch: Batch) -> Outputs:
        device = batch.pixels.device
        images = len(batch.pixels)
        wide = self.widths
        maps = {
            layer: torch.rand(
                images, wide.layer(layer), self.grid.height, self.grid.width, device=device
            )
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
        image = self.live.features(replace(batch, texts={})).image if self.live else image
        index = {name: texts.image_index for name, texts in batch.texts.items()}
        return Outputs(image, texts, index, torch.tensor(20.0, device=device))


def open_blank(teacher: Teacher) -> Towers | None:
    """The teacher without weights, after a picture and a text went through it; None where it is
    not here.
    """
    if (towers := teacher.source.blank()) is not None:
        with library_errors(Message("teacher {} cannot be used", teacher.model), COPY_AGAIN):
            widths(towers)
    return towers


def measure(stage: BlankStage, with_teachers: bool = True) -> Times:
    """Rough times and the peak memory of a step, and the paces of cached teachers, measured in a
    process of its own.

    Raises DcclipError where there is not enough memory for the smallest parts of a step.
    """
    absent = len(stage.blank_teachers) - len(
        stage.random_features
    )  # cached features, which the copy needs
    alone = copy(stage)
    alone.blank_teachers = [None] * absent
    try:
        with process_pool(1, (__name__,)) as pool:  # which imports this once for all stages
            [times] = calls(
                pool, partial(_measure, with_teachers=with_teachers), [alone], _MEMORY_HINT
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DcclipError(
            "{}: there is not enough memory for a step", _MEMORY_HINT, stage.name
        ) from None
    if stage.device != "cpu" or not times.peak_bytes:
        return times
    # It is what that process grew by; the run's makes the same checks as this one before.
    return replace(times, peak_bytes=times.peak_bytes + peak_memory_bytes())


def _measure(stage: BlankStage, with_teachers: bool) -> Times:
    """`measure` in that process: the trainer's steps, and batches of the teachers whose features
    are cached.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    options = stage.options
    device = stage.device
    processes = stage.processes
    base = peak_memory_bytes()
    on_cpu = device == "cpu"
    workers = loading_processes(options.workers, device, processes)
    changes = {
        "workers": workers,
        "validate_every_steps": None,
        "compile": options.compile and not on_cpu,
    }
    if on_cpu and processes > 1:
        changes["threads"] = options.threads or 1  # as the launcher
    stage.options = options.model_copy(update=changes)
    stage.sizes = {kind: size // processes for kind, size in stage.known_sizes.items()}
    with TemporaryDirectory(prefix="dcclip-") as folder:
        stage.folder = Path(folder)
        join_processes(device)
        use_kernels(stage.options, device)
        use_threads(stage.options, stage.folder)
        if stage.blank_teachers:
            return Times(None, _paces(stage) if with_teachers else [])
        parts = stage.fewest_parts
        total = sum(stage.sizes.values())
        write_json(stage.folder / COMPUTED_IN, {"accumulate": [[0, parts]]})
        stage.settle()
        stage.options = stage.options.model_copy(
            update={"accumulate": "auto"}
        )  # where these parts do not fit
        trainer = Trainer(stage)
        trainer.restore()
        trainer.task.train()
        paces = _paces(stage) if with_teachers and options.teacher_cache else []
        (few, _, _, before), (count, step_s, load_s, peak) = (
            [*_steps(stage, trainer, parts, workers)] * 2
        )[-2:]
        needed = trainer.parts.at(trainer.state.step)
    step_s = total / count * step_s
    load_s = total / count * load_s / max(1, workers)
    growth = (peak - before) / max(1, count - few) * (total - count) - (base if on_cpu else 0)
    return Times(
        max(step_s, load_s) if workers else step_s + load_s,
        paces,
        peak + growth,
        needed if needed > parts else None,
    )


def _steps(
    stage: BlankStage, trainer: Trainer, parts: int, workers: int
) -> Iterator[tuple[int, float, float, int]]:
    """Samples, seconds to compute and to load, and peak memory of growing steps: the last takes a
    second of a core.

    On a GPU, of a whole step. Other work on the machine changes times, but not how much is
    measured.
    """
    sizes = [*stage.sizes.values()]
    device = stage.device
    cpu_s = 0.0
    runs = 2
    part = 2 if device == "cpu" else max(sizes)
    while True:
        counts = [min(size, parts * max(2, size * part // max(sizes))) for size in sizes]
        is_last = counts == sizes or cpu_s >= 2 * stage.enough_s
        samplers = zip(stage.training.sampler.samplers, counts, strict=True)
        sampler = MixedBatchSampler(
            tuple(replace(sampler, batch_size=count) for sampler, count in samplers)
        )
        batches = load_batches(stage.collator.batch, sampler(0, runs), min(1, workers), 1)
        first = next(batches)
        began = time.perf_counter()
        second = next(batches)
        load_s = time.perf_counter() - began
        began = time.process_time()
        seconds = list[float]()
        for batch in chain((first, second), batches):
            seconds.append(
                _seconds(
                    partial(trainer.train_step, trainer.task.prepare(batch, trainer.device)), device
                )
            )
        cpu_s = (time.process_time() - began) / runs
        yield sum(counts), min(seconds), load_s, peak_bytes(trainer.device)
        part = part * (4 if cpu_s < stage.enough_s / 2 else 2)
        runs = 2 if cpu_s >= 2 * stage.enough_s else 4
        if is_last:
            return


def _paces(stage: BlankStage) -> list[Pace | None]:
    """The paces of all processes together; None for a teacher whose files are not here."""
    captions = (preview.captions for preview in stage.previews.values())
    texts_of_samples = (
        texts for sample in chain.from_iterable(captions) for texts in sample.values()
    )
    texts = [*islice(chain.from_iterable(texts_of_samples), 64)] or ["a cat", "猫"]
    paces = list[Pace | None]()
    for teacher in stage.teachers:  # in which those that run in each step are loaded already
        paces.append(
            _pace(stage, teacher.towers, texts) if teacher.options.source.folder() else None
        )
        if stage.options.teacher_cache is True:
            teacher.free()  # as the run
    return paces


def _pace(stage: BlankStage, towers: Towers, captions: list[str]) -> Pace:
    device = stage.device
    enough_s = stage.enough_s
    towers = towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    blank = torch.from_numpy(towers.preprocess(Image.new("RGB", (256, 256)))).to(device)

    def images(count: int) -> None:
        towers.image_features(
            blank.expand(count, *blank.shape).contiguous(memory_format=torch.channels_last)
        )

    def texts(count: int) -> None:
        towers.text_features_by_length(towers.tokenize(captions[:count]).to(device))

    def seconds_per_sample(action: Callable[[int], object], most: int) -> float:
        """For as many samples as take half a second, at most `most`."""
        count = min(most, 2)
        while (
            seconds := min(_seconds(partial(action, count), device) for _ in range(2))
        ) < enough_s and count < most:
            count = min(most, 4 * count)
        return seconds / count / stage.processes

    with towers.as_teacher():
        return Pace(seconds_per_sample(images, 64), seconds_per_sample(texts, len(captions)))


def _seconds(action: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def lines(stage: BlankStage, times: Times) -> Iterator[str]:
    """A stage's warnings and estimates in words."""
    yield from warnings(stage)
    yield from time_lines(stage, times)
    if times.peak_bytes:
        yield Message(
            "{}: peak memory of a process about {}",
            stage.name,
            size_in_words(round(times.peak_bytes)),
        )
    available = memory() if stage.device == "cpu" else None
    if times.parts or (available and available.total < stage.processes * times.peak_bytes):
        parts = times.parts or 2 * stage.options.fewest_parts(stage.known_sizes, stage.processes)
        yield Message(
            "warning: {}: a step does not fit in memory: set accumulate: {}, or a "
            "smaller images_per_part",
            stage.name,
            parts,
        )
    disk = Message("checkpoints and model {}", size_in_words(stage.run_bytes))
    if stage.cache_bytes:
        disk = joined(", ", (Message("teacher cache {}", size_in_words(stage.cache_bytes)), disk))
    yield Message("{}: disk space needed, approximately: {}", stage.name, disk)


def time_lines(stage: BlankStage, times: Times) -> Iterator[str]:
    """What a stage's steps take, and its teachers that have something left to encode."""
    name = stage.name
    steps = Message("{:,} steps of {:,} samples", stage.steps, sum(stage.known_sizes.values()))
    if times.step_s is None:
        yield Message("{}: {}; the time is unknown without the teacher's files", name, steps)
    else:
        took = duration_in_words(stage.steps * times.step_s)
        yield Message("{}: {} take about {} ({:.3g} s per step)", name, steps, took, times.step_s)
    for number, pace in enumerate(times.teachers):
        rows = stage.remaining_rows(number)
        if stage.options.teacher_cache == "texts" and times.step_s is not None:
            rows = Rows(0, rows.texts)  # images are part of the steps
        if not (rows.images or rows.texts):
            continue
        who = Message("the teacher") if len(times.teachers) == 1 else Message("teacher {}", number)
        encodes = Message(
            "{}: {} encodes about {:,} images and up to {:,} texts",
            name,
            who,
            rows.images,
            rows.texts,
        )
        if pace is None:
            yield Message("{}; the time is unknown without its files", encodes)
        else:
            took = duration_in_words(rows.images * pace.image_s + rows.texts * pace.text_s)
            yield Message("{}: about {}", encodes, took)
