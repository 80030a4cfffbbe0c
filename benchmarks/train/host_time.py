"""Host time per step of the paper's recipe, with the model and the GPU left out.

    python benchmarks/train/host_time.py WORK [--pairs 16384] [--batch-size 1024] [--workers 2] [--steps 48]

Batches of stage 1 of recipes/dc-clip.yaml come from the loader as in training: images at 224 px, captions in two
languages with tokens, and of the teacher (AltCLIP's widths) embeddings, maps of 7 x 7 and tokens from the cache, whose
rows are random numbers that are written to WORK first (200 KB a pair). They go to torch's device `meta`, which
computes nothing, and through the teacher cache. Printed are the CPU seconds that the main process takes per step,
the check of the next rows ahead of training included, and the CPU seconds that the loading processes take per batch.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from torch.utils.data import DataLoader

from dcclip_cli.data.collator import Batch, Collator
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.options import Augment, CaptionOptions
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.pixels import Uint8Pixels, normalized
from dcclip_cli.data.samplers import EpochBatchSampler
from dcclip_cli.machine import keep_freed_memory
from dcclip_cli.model.precision import Choice
from dcclip_cli.model.preprocess import Preprocessing
from dcclip_cli.model.tokenizer import tokenize_with, train_tokenizer
from dcclip_cli.progress import Silent
from dcclip_cli.signals import begin_worker
from dcclip_cli.store import Ragged
from dcclip_cli.train import teacher
from dcclip_cli.train.feature_shapes import Grid
from dcclip_cli.train.lazy_teacher import LazyTeacher, TeacherFacts
from dcclip_cli.train.losses.base import Widths
from dcclip_cli.train.losses.embeddings import EmbeddingLoss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import TrainOptions
from dcclip_cli.train.teacher_cache import IMAGE, TEXT, TOKENS, TeacherCache, needed_rows

WIDTHS = Widths(768, 1024, 1024)  # AltCLIP's
LOSSES = (FeatureMapLoss(), TokenFeaturesLoss(), EmbeddingLoss())
SIZE = 224
WORDS = "a photo of some red cats and dogs on the old green sofa in front of house number"


class NoTeacher(LazyTeacher):
    """What is known of AltCLIP, without its weights."""

    def __init__(self) -> None:
        self.facts = TeacherFacts("altclip", "none", 100.0, 0, WIDTHS, Choice("fp32", "as requested"))
        self._towers = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--pairs", type=int, default=16_384)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=48)
    given = parser.parse_args()
    work = given.work.resolve() / f"host-time-{given.pairs}"
    work.mkdir(parents=True, exist_ok=True)
    os.environ["DCCLIP_CACHE"] = str(work / "cache")
    keep_freed_memory()
    file = work / "pairs.parquet"
    if not file.exists():
        write_parquet(file, pairs(given.pairs))
    dataset = open_pairs(file)
    captions = [text for language in ("zh", "en") for several in dataset.captions(language) for text in several]
    tokenize = tokenize_with(train_tokenizer(captions[:: max(1, len(captions) // 4000)], 2_000), 77)
    pixels = Uint8Pixels(Preprocessing(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    collator = Collator(dataset, 0, Augment(crop=0.6), CaptionOptions(), pixels, tokenize, num_augmentations=1)
    cache = TeacherCache(NoTeacher(), collator, LOSSES, {-1: Grid(7, 7)}, given.workers, Silent())
    fill(cache, collator)
    collator = replace(collator, read_features=(cache.reader,))
    teacher._ROWS = given.pairs  # so that no row is needed twice by one part
    options = TrainOptions(steps=given.steps, batch_size=given.batch_size)
    samplers = (EpochBatchSampler(dataset, given.batch_size, 0),)
    sampler = teacher.CacheFillingSampler(samplers, (cache,), options)
    measure(sampler, collator, cache, pixels.preprocessing, given)


def pairs(count: int) -> Iterator[Pair]:
    random = np.random.default_rng(0)
    images = []
    for _ in range(16):
        stream = io.BytesIO()
        small = random.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(small).resize((256, 256), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
        images.append(stream.getvalue())
    for number in range(count):
        english = " ".join(random.permutation(WORDS.split())[:12]) + f" {number}"
        chinese = "".join(random.permutation(list("一张红色的猫和狗在旧绿沙发前面房子照片"))[:15]) + str(number)
        yield Pair(f"{number:08}", images[number % 16], (chinese,), (english,))


def fill(cache: TeacherCache, collator: Collator) -> None:
    """Write random rows for all pairs, if they are not there."""
    reader, random = cache.reader, np.random.default_rng(0)
    rows = needed_rows(collator, [[(index, 0) for index in range(len(collator.dataset))]])
    noise = random.standard_normal(2**24).astype(np.float16)

    def some(*shape: int) -> np.ndarray:
        first = int(random.integers(2**16))
        return np.resize(noise[first:], shape)

    def images(keys: np.ndarray) -> Iterator[Any]:
        for part in np.array_split(keys, max(1, len(keys) // 128)):
            maps = some(len(part), WIDTHS.image_map, 7, 7)
            yield part, {IMAGE: some(len(part), WIDTHS.embedding), reader.image_arrays[1]: maps}

    def texts(keys: np.ndarray) -> Iterator[Any]:
        for part in np.array_split(keys, max(1, len(keys) // 128)):
            lengths = random.integers(12, 32, len(part))
            tokens = Ragged(some(int(lengths.sum()), WIDTHS.text_tokens), lengths)
            yield part, {TEXT: some(len(part), WIDTHS.embedding), TOKENS: tokens}

    if (missing := reader.images.missing(rows.image_keys, reader.image_arrays)).any():
        reader.images.write(images(rows.image_keys[missing]))
    if (missing := reader.texts.missing(rows.text_keys, reader.text_arrays)).any():
        reader.texts.write(texts(rows.text_keys[missing]))


def measure(
    sampler: teacher.CacheFillingSampler,
    collator: Collator,
    cache: TeacherCache,
    preprocessing: Preprocessing,
    given: argparse.Namespace,
) -> None:
    loader: DataLoader[Batch] = DataLoader(
        collator,  # type: ignore[arg-type]  # asked for whole batches through __getitems__
        batch_sampler=sampler.share(0, given.steps),
        collate_fn=lambda batch: batch,
        num_workers=given.workers,
        multiprocessing_context="fork" if given.workers else None,
        worker_init_fn=begin_worker,
        prefetch_factor=1 if given.workers else None,
    )
    first = collator.batch([(0, 0), (1, 0)]).to("meta")  # what the first operations on `meta` import is no step's
    normalized(first.pixels, preprocessing)
    cache.features(first)
    begin, wall = time.process_time(), time.monotonic()
    size, steps, workers = 0, 0, []
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        steps += 1
        workers = workers or psutil.Process().children()
        assert batch.teacher_features[0] is not None, "rows are missing"
        size = size or sum(values.nbytes for values in batch.teacher_features[0].images.values())
        moved = batch.to("meta")
        normalized(moved.pixels, preprocessing)
        cache.features(moved)
        if steps == given.steps:
            loading = sum(sum(process.cpu_times()[:2]) for process in workers)
    main_s, wall_s = time.process_time() - begin, time.monotonic() - wall
    print(f"{given.pairs:,} pairs, batches of {given.batch_size:,}, {given.workers} loading processes, {steps} steps")
    print(f"features of a batch's images: {size / 1e6:.0f} MB")
    print(f"main process: {main_s / steps:.3f} CPU s a step")
    if given.workers:
        print(f"loading processes: {loading / steps:.3f} CPU s a batch")
    print(f"wall: {wall_s / steps:.3f} s a step")
    print(f"USS: main {uss(psutil.Process()):.0f} MB")


def uss(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss) / 1e6


if __name__ == "__main__":
    main()
