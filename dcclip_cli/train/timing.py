"""Time of a training stage's steps and teachers: by operations, or by a few real passes.

Operations become seconds by a matrix product that is timed on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dcclip_cli.data.collator import OTHER, Batch, Texts
from dcclip_cli.data.pixels import Uint8Pixels
from dcclip_cli.machine import cores, loading_processes
from dcclip_cli.model.blank import blank_student, local_folder
from dcclip_cli.model.preprocess import decode, flatten
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Tokens, Towers
from dcclip_cli.train.estimate import Pace, StageWork, Times
from dcclip_cli.train.feature_shapes import Grid, widths
from dcclip_cli.train.losses.base import Outputs, Widths
from dcclip_cli.train.optimizer import make_optimizer
from dcclip_cli.train.task import TrainingTask

_SMALL = 400_000_000  # bytes of a teacher's files up to which it is loaded to be timed
_BUDGET_S = 1.5  # of one measurement
_EFFICIENCY = 0.4  # of a matrix product's speed that whole towers reach


def by_operations(work: StageWork) -> Times:
    """Times from numbers of operations and the speed of a matrix product: no weights, and less than a second."""
    speed = _EFFICIENCY * _flops_per_second(work.device)
    own = _operations(work.shapes.student, work.tokens)
    images = sum(size for kind, size in work.sizes.items() if kind != "texts")
    step = 3 * (images * own[0] + work.texts_per_step * own[1]) / speed  # a backward pass takes twice a forward pass
    passes = (None if one is None else _operations(one, work.tokens) for one in work.shapes.teachers)
    paces = [None if one is None else Pace(one[0] / speed, one[1] / speed) for one in passes]
    return Times(step, paces, False)


def by_measuring(work: StageWork) -> Times:
    """As `by_operations`, with a few real steps of the student, and the passes of teachers that are local and small."""
    estimated = by_operations(work)
    threads, workers = torch.get_num_threads(), loading_processes(work.options.workers, work.device)
    torch.set_num_threads(work.options.threads or max(cores() - workers, cores() // 2 + 1))
    try:
        step = _step_seconds(work) if work.student is not None else estimated.step_s
        teachers = [
            _teacher_pace(work, number, pace) if pace is not None else None
            for number, pace in enumerate(estimated.teachers)
        ]
    finally:
        torch.set_num_threads(threads)
    load = _load_seconds(work)
    images = sum(size for kind, size in work.sizes.items() if kind != "texts")
    loading = images * load / max(1, workers)
    teachers = [pace and Pace(max(pace.image_s, load), pace.text_s, pace.measured) for pace in teachers]
    return Times(max(step, loading) if not _stay_in_memory(work) else step, teachers, work.student is not None)


def _stay_in_memory(work: StageWork) -> bool:
    """Whether the loader's workers keep the pixels of all images, so that they are read once."""
    from dcclip_cli.data.pixels import CACHE_BYTES

    size = work.shapes.student.preprocessing.size if work.shapes.student.preprocessing else 224
    return work.rows.images * 3 * size * size <= CACHE_BYTES


def _operations(towers: Towers, tokens: int) -> tuple[float, float]:
    """Floating-point operations for an image and for a text, without weights."""
    side = towers.preprocessing.size if towers.preprocessing else 224
    # A tower for texts of one length is given no other, and its tokenizer, unlike a new student's, is there.
    length = min(tokens, towers.context_length) if towers.takes_any_length else towers.tokenize([""]).ids.shape[1]
    ids = torch.ones(1, length, dtype=torch.long, device="meta")
    found = []
    with torch.no_grad():
        for run in (
            lambda: towers.image_features(torch.zeros(1, 3, side, side, device="meta")),
            lambda: towers.text_features(Tokens(ids, ids)),
        ):
            with FlopCounterMode(display=False) as counter:
                run()
            found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def _flops_per_second(device: str) -> float:
    """Operations per second of a matrix product in fp32."""
    one = torch.rand(768, 768, device=device)
    return 2 * 768**3 / _seconds(lambda: one @ one, device, 0.1)


def _seconds(action: Callable[[], object], device: str = "cpu", budget: float = _BUDGET_S) -> float:
    """Seconds that an action takes: the fastest of some runs within about `budget` seconds, after a first one."""

    def once() -> float:
        began = time.perf_counter()
        action()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - began

    first = once()
    if first > budget:
        return first
    times, end = [once()], time.perf_counter() + budget / 2
    while time.perf_counter() < end and len(times) < 5:
        times.append(once())
    return min(times)


def _step_seconds(work: StageWork) -> float:
    """Seconds of a training step: a straight line through two measured numbers of samples."""
    assert work.student is not None
    torch.manual_seed(0)
    embed_dim = widths(work.shapes.student).embedding
    student = blank_student(work.student, embed_dim, work.device)
    layers = {layer for loss in work.shapes.losses for layer in loss.teacher_layers_needed}
    wide = [widths(one, sorted(layers)) for one in work.shapes.teachers if one is not None]
    if len(wide) < len(work.shapes.teachers):
        return 0.0
    teachers = [_RandomTeacher(one, work.grids) for one in wide]
    task = TrainingTask(student, work.shapes.losses, teachers, work.seed).to(work.device).train()
    optimizer = make_optimizer(task, work.options.optimizer.model_copy(update={"newton_schulz": "fp32"}))

    def step(batch: Batch) -> None:
        total = sum(task(batch).values(), torch.zeros((), device=work.device))
        if total.requires_grad:  # not where a batch is too small for any of the losses
            total.backward()
        optimizer.step()
        optimizer.zero_grad()

    whole = sum(work.sizes.values())
    few = min(whole, max(4, min(8, whole // 16)))  # 64 of a ResNet-50 take long
    first = _batch(work, few / whole)
    few_s = _seconds(lambda: step(first), work.device, _BUDGET_S / 2)
    more = min(whole, max(2 * few, int(few * _BUDGET_S / 3 / max(few_s, 1e-6))))
    if more <= few:
        return few_s
    second = _batch(work, more / whole)
    more_s = _seconds(lambda: step(second), work.device)
    slope = max(0.0, more_s - few_s) / (more - few)
    return more_s + slope * (whole - more)


def _batch(work: StageWork, fraction: float) -> Batch:
    """A batch of that fraction of a step's samples, of random pixels and tokens."""
    side = work.shapes.student.preprocessing.size if work.shapes.student.preprocessing else 224
    sizes = [size for kind, size in work.sizes.items() if kind != "texts"]
    images = sum(min(size, max(2, round(size * fraction))) for size in sizes)  # batch norms take no single image
    languages = work.options.captions.languages
    names = [*languages, *(one + OTHER for one in languages)] if work.options.captions.second_caption else languages
    each = max(2, round(work.texts_per_step * fraction / len(names)))
    ids = torch.randint(4, 250, (each, min(work.tokens, work.shapes.student.context_length)), device=work.device)
    ids[:, -1] = 2
    index = torch.arange(each, device=work.device)
    texts = {name: Texts(index, [""] * each, Tokens(ids, torch.ones_like(ids)).to(work.device)) for name in names}
    numbers = torch.zeros(images, dtype=torch.long)
    pixels = torch.rand(images, 3, side, side, device=work.device).contiguous(memory_format=torch.channels_last)
    return Batch(numbers, numbers, pixels, (), texts, max(0, each - images))


@dataclass(frozen=True)
class _RandomTeacher:
    """In place of a teacher's cached features."""

    widths: Widths
    grids: Mapping[int, Grid]

    def features(self, batch: Batch) -> Outputs:
        device, images = batch.pixels.device, len(batch.pixels)
        grid = self.grids[-1]
        maps = {
            layer: torch.rand(images, self.widths.layer(layer), grid.height, grid.width, device=device)
            for layer in (-1, *self.widths.other_maps)
        }
        image = ImageFeatures(torch.rand(images, self.widths.embedding, device=device), maps.pop(-1), maps)
        texts = {
            name: TextFeatures(
                torch.rand(len(one.captions), self.widths.embedding, device=device),
                torch.rand(*one.tokens.ids.shape, self.widths.text_tokens, device=device),
                one.tokens.mask,
            )
            for name, one in batch.texts.items()
        }
        index = {name: one.image_index for name, one in batch.texts.items()}
        return Outputs(image, texts, index, torch.tensor(20.0, device=device))


def _teacher_pace(work: StageWork, number: int, estimated: Pace) -> Pace:
    """A teacher's measured pace where it is local and small, else the estimated one."""
    folder = local_folder(work.teachers[number])
    if folder is None or sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) > _SMALL:
        return estimated
    towers = work.teachers[number].load(work.device)
    count = max(1, min(64, int(_BUDGET_S / 3 / max(estimated.image_s, 1e-6))))
    blank = torch.from_numpy(towers.preprocess(Image.new("RGB", (256, 256))))
    pixels = blank.expand(count, *blank.shape).to(work.device).contiguous(memory_format=torch.channels_last)
    towers = towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the cache does
    several = (texts for one in work.data.values() for found in one.captions for texts in found.values())
    captions = list(islice(chain.from_iterable(several), 64)) or ["a cat", "猫"]
    tokens = towers.tokenize(captions).to(work.device)
    with towers.as_teacher():
        image = _seconds(lambda: towers.image_features(pixels), work.device) / count
        text = _seconds(lambda: towers.text_features_by_length(tokens), work.device) / len(tokens.ids)
    return Pace(image, text, True)


def _load_seconds(work: StageWork) -> float:
    """Seconds that reading, augmenting and resizing an image takes, by the first one of the data; 0 if it is remote."""
    import numpy as np

    image = next((one.image for one in work.data.values() if one.image), None)
    preprocessing = work.shapes.student.preprocessing
    if image is None or preprocessing is None:
        return 0.0
    random, resize = np.random.default_rng(0), Uint8Pixels(preprocessing)
    return _seconds(lambda: resize(work.options.augment(flatten(decode(image)), random)), budget=0.2)
