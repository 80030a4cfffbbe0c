"""Teacher cache: a teacher's features of every augmented image and caption, computed once and shared by all runs.

Storing them and replaying the augmentations pays for the teacher once ("dataset reinforcement", MobileCLIP,
arXiv 2311.17049). The features are in feature stores in the user's cache folder. They are computed ahead of training,
for the rows of some steps at a time, and read in the loader's workers.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcclip_cli.data.batch import Batch, StoredFeatures, StoredTexts
from dcclip_cli.data.collator import Collator
from dcclip_cli.data.options import Augment
from dcclip_cli.data.pair import PairDataset
from dcclip_cli.data.pixels import VERSION, normalized, stacked, training_preprocess
from dcclip_cli.data.samplers import MixedBatchSampler, Sample
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.files import cache_folder
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Towers
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.store import FeatureStore, MissingRows, Ragged, Values, digests
from dcclip_cli.train.distributed import process_count, process_index
from dcclip_cli.train.loading import load_batches
from dcclip_cli.train.losses.base import Loss, Outputs
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss, to_grid
from dcclip_cli.train.teacher import Grid, LazyTeacher, TeacherFacts, TeacherFeatures, no_images

FOLDER = "teacher-cache"
IMAGE, TEXT, TOKENS = "image_embedding", "text_embedding", "text_tokens"
BATCH_SIZE = 64  # of the teacher: in bf16, results depend on what is computed together
_ROWS = 65_536  # image rows that the caches are completed for at a time
_HINT = Message("check the teacher's weights; or set its precision to fp32, or teacher_cache (fp16) to false")


def folder_of(teacher: TeacherFacts) -> Path:
    """The folder of a teacher's features: a name for people, and a hash of what all of them depend on."""
    name = re.sub(r"[^\w.-]+", "-", teacher.name)
    return cache_folder() / FOLDER / f"{name}-{_short(f'{teacher.fingerprint} {BATCH_SIZE}')}"


def stores_of(
    teacher: TeacherFacts, augment: Augment, seed: int, warn: Callable[[str], None] = lambda _: None
) -> tuple[FeatureStore, FeatureStore]:
    """The stores of a teacher's features of images with an augmentation, and of texts."""
    # The random numbers of an augmentation come from the seed and from the sample's number in the dataset.
    augmentation, folder = f"{augment.model_dump_json()} {seed} {VERSION}", folder_of(teacher)
    return FeatureStore(folder / f"images-{_short(augmentation)}", warn), FeatureStore(folder / "texts", warn)


# ---- the keys of rows


def image_keys(dataset: PairDataset, samples: Iterable[Sample]) -> np.ndarray:
    """The keys of augmented images, (sample, augmentation) each.

    They depend on the sample's number as well, because the augmentation's random numbers do.
    """
    return digests(
        "image", (dataset.image_digest(index) + struct.pack("<QQ", index, which) for index, which in samples)
    )


def text_keys(texts: Iterable[str]) -> np.ndarray:
    return digests("text", (text.encode() for text in texts))


# ---- reading them in the loader's workers


@dataclass(frozen=True)
class FeatureReader:
    """Reads what a teacher's stores have of a batch, in the loader's workers.

    `image_arrays` and `text_arrays` are the names of the arrays that losses need.
    """

    dataset: PairDataset
    images: FeatureStore
    texts: FeatureStore
    image_arrays: tuple[str, ...]
    text_arrays: tuple[str, ...]

    def __call__(self, batch: Batch) -> StoredFeatures:
        """The features of a batch, which `TeacherCache.complete` computed. Raises DcclipError if they are gone."""
        with suppress(MissingRows):
            return self._read(batch)
        self.images.refresh()  # what was computed since
        self.texts.refresh()
        try:
            return self._read(batch)
        except MissingRows:
            problem = Message("features of a teacher were deleted from {} or {}", self.images.folder, self.texts.folder)
            raise DcclipError(problem, "run the same command again: it computes the missing features") from None

    def _read(self, batch: Batch) -> StoredFeatures:
        samples = zip(batch.sample_index.tolist(), batch.augmentation_index.tolist(), strict=True)
        images = _read(self.images, self.image_arrays, image_keys(self.dataset, samples))
        texts = {}
        for name, entry in batch.texts.items():
            arrays = _read(self.texts, self.text_arrays, text_keys(entry.captions))
            texts[name] = StoredTexts(arrays[TEXT][0], *arrays.get(TOKENS, ()))
        return StoredFeatures({name: parts[0] for name, parts in images.items()}, texts)


def _read(store: FeatureStore, names: Sequence[str], keys: np.ndarray) -> dict[str, tuple[Tensor, ...]]:
    """Arrays of some rows as tensors; of ragged ones also which entries each row has (0: padding), and how many."""
    tensors: dict[str, tuple[Tensor, ...]] = {}
    for name, values in store.read_arrays(names, keys).items() if len(keys) else ():
        if not isinstance(values, Ragged):
            tensors[name] = (torch.from_numpy(values),)
            continue
        lengths = torch.from_numpy(values.lengths)
        firsts, columns = lengths.cumsum(0) - lengths, torch.arange(int(values.lengths.max(initial=0)))
        rows = (firsts[:, None] + columns) * (columns < lengths[:, None])
        tensors[name] = torch.from_numpy(values.values), rows, lengths
    return tensors


# ---- computing them


@dataclass(frozen=True)
class _Images:
    """Augmented images as the teacher takes them."""

    collator: Collator
    teacher: Towers

    def __getitems__(self, samples: list[Sample]) -> torch.Tensor | DcclipError:
        try:
            preprocess = training_preprocess(self.teacher)
            return stacked([self.collator.pixels(*sample, preprocess)[0] for sample in samples])
        except DcclipError as error:
            return error  # torch would lose the hint of an error raised in a worker


class TeacherCache(TeacherFeatures):
    """A teacher's features of a stage's data: unit-length embeddings, feature maps and token features, in fp16.

    Feature maps, averaged to the student's `grids` by its layer, and token features are stored only where one of
    `losses` needs them. An image's row depends on its bytes, its number in the dataset and the augmentation, a
    caption's on its text: other data, or another run, finds all rows that it shares.
    """

    def __init__(
        self,
        teacher: LazyTeacher,
        collator: Collator,
        losses: Sequence[Loss],
        grids: Mapping[int, Grid],
        workers: int,
        progress: Progress,
        number: int = 0,
    ) -> None:
        """`workers` processes read images for the teacher; `number` is the teacher's."""
        self._number, self._teacher, self.widths = number, teacher, teacher.facts.widths
        self._collator, self._workers, self._progress = collator, workers, progress
        self._grids = map_sizes(losses, grids)
        self._maps = {layer: f"image_map {layer} {grid.height}x{grid.width}" for layer, grid in self._grids.items()}
        self._tokens = any(isinstance(loss, TokenFeaturesLoss) for loss in losses)
        self._scale = torch.tensor(teacher.facts.logit_scale)
        self.folder = folder_of(teacher.facts)
        self._images, self._texts = stores_of(teacher.facts, collator.augment, collator.seed, self._progress.say)
        arrays = (IMAGE, *self._maps.values()), (TEXT, TOKENS) if self._tokens else (TEXT,)
        self.reader = FeatureReader(collator.dataset, self._images, self._texts, *arrays)
        self.computed = {"images": 0, "captions": 0}  # rows, since this object was made

    def complete(self, batches: Sequence[Sequence[Sample]]) -> None:
        """Compute what is missing for these batches; processes that train together, or other runs, share the work.

        The teacher is freed where nothing was missing.
        """
        if not self._fill(batches, self._progress):
            self._teacher.free()

    def completing(self, batches: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
        """The batches, each once what is missing for it is computed."""
        for batch in batches:
            self._fill([batch], Silent())
            yield batch

    def finish(self) -> None:
        """Free the teacher, for nothing is left to compute, and report what it computed."""
        self._teacher.free()
        done = ", ".join(f"{count:,} {kind}" for kind, count in self.computed.items())
        size = self._images.size + self._texts.size  # of all rows that are stored, also of other data
        line = Message("teacher: features in {}, {:,.0f} MB; computed {}", self.folder, size / 1e6, done)
        self._progress.say(line)

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, from what the loader has read, if it has."""
        device = batch.pixels.device
        if batch.teacher_features:
            stored = batch.teacher_features[self._number]
        else:  # the batch of a collator without `read_features`
            stored = self.reader(batch).map(lambda tensor: tensor.to(device))
        if stored.images:
            embedding = stored.images[IMAGE].float()
            maps = {layer: stored.images[name].float() for layer, name in self._maps.items()}
            image = ImageFeatures(embedding, maps.pop(-1, embedding[:, :, None, None]), maps)
        else:
            image = no_images(self.widths, [layer for layer in self._maps if layer != -1], device)
        texts = {name: _text_features(features) for name, features in stored.texts.items()}
        image_index = {name: entry.image_index for name, entry in batch.texts.items()}
        self._scale = self._scale.to(device)
        return Outputs(image, texts, image_index, self._scale)

    def _fill(self, batches: Iterable[Sequence[Sample]], progress: Progress) -> int:
        """Compute what is missing for these batches; return how many rows that were.

        The rows are the same ones in the same order however many processes share them.
        """
        collator, reader, total = self._collator, self.reader, 0
        augmented, chosen = set[Sample](), set[str]()
        for batch in batches:
            with_image = ((index, epoch) for index, epoch in batch if index < collator.dataset.num_images)
            augmented |= {(index, epoch % collator.num_augmentations) for index, epoch in with_image}
            chosen |= collator.chosen_captions(batch)
        samples, captions = sorted(augmented), sorted(chosen, key=lambda text: (len(text), text))
        keys_of_images, compute_images = image_keys(collator.dataset, samples), partial(self._compute_images, samples)
        keys_of_texts, compute_texts = text_keys(captions), partial(self._compute_texts, captions)
        for kind, store, keys, arrays, compute in (
            ("images", self._images, keys_of_images, reader.image_arrays, compute_images),
            ("captions", self._texts, keys_of_texts, reader.text_arrays, compute_texts),
        ):
            store.refresh()
            missing = int(store.missing(keys, arrays).sum())
            total += missing
            if missing:
                task = progress.task(Message("teacher: {}", kind), len(keys), len(keys) - missing)
                with task as shown:
                    first = process_index() / process_count()
                    store.fill(keys, arrays, compute, BATCH_SIZE, shown.advance, first)
        return total

    def _compute_images(self, samples: list[Sample], batches: list[np.ndarray]) -> Iterator[Values]:
        teacher = self._teacher.towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        layers = tuple(layer for layer in self._maps if layer != -1)
        samples_of_batches = [[samples[row] for row in batch] for batch in batches]
        for pixels in load_batches(_Images(self._collator, teacher), samples_of_batches, self._workers):
            moved = normalized(pixels.to(self._teacher.device), teacher.preprocessing)
            moved = moved.contiguous(memory_format=torch.channels_last)
            with teacher.as_teacher():
                features = teacher.image_features(moved, layers)
                values = {IMAGE: F.normalize(features.embedding.float(), dim=-1)}
                for layer, grid in self._grids.items():
                    values[self._maps[layer]] = to_grid(features.layer(layer).float(), grid.height, grid.width)
            self.computed["images"] += len(pixels)
            yield {name: _half(value, teacher, "images") for name, value in values.items()}

    def _compute_texts(self, captions: list[str], batches: list[np.ndarray]) -> Iterator[Values]:
        teacher = self._teacher.towers
        for batch in batches:
            tokens = teacher.tokenize([captions[row] for row in batch]).to(self._teacher.device)
            with teacher.as_teacher():
                features = teacher.text_features_by_length(tokens)
                embedding = F.normalize(features.embedding.float(), dim=-1)
                real = features.tokens.float()[features.mask.bool()] if self._tokens else None
            values: dict[str, np.ndarray | Ragged] = {TEXT: _half(embedding, teacher, "texts")}
            if real is not None:
                values[TOKENS] = Ragged(_half(real, teacher, "tokens"), features.mask.sum(1).cpu().numpy())
            self.computed["captions"] += len(batch)
            yield values


def _text_features(stored: StoredTexts) -> TextFeatures:
    """Features of texts, their tokens padded with 0."""
    embedding = stored.embedding.float()
    if stored.tokens is None or stored.rows is None or stored.lengths is None:
        mask = torch.ones(len(embedding), 1, dtype=torch.long, device=embedding.device)
        return TextFeatures(embedding, embedding[:, None], mask)
    mask = torch.arange(stored.rows.shape[1], device=embedding.device) < stored.lengths[:, None]
    tokens = stored.tokens[stored.rows].float().masked_fill(~mask[:, :, None], 0)
    return TextFeatures(embedding, tokens, mask.long())


def _half(values: Tensor, teacher: Towers, inputs: str) -> np.ndarray:
    # A feature map beyond fp16's 65,504 becomes infinite.
    return finite(values.half().cpu().numpy(), teacher.name, inputs, _HINT)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def map_sizes(losses: Sequence[Loss], grids: Mapping[int, Grid]) -> dict[int, Grid]:
    """The teacher's layers whose maps are stored, with the finest grid on which a student's layer needs each."""
    sizes: dict[int, Grid] = {}
    for loss in losses:
        if isinstance(loss, FeatureMapLoss):
            for student, teacher in zip(loss.student_layers, loss.teacher_layers, strict=True):
                grid, before = grids[student], sizes.get(teacher, Grid(1, 1))
                sizes[teacher] = Grid(max(grid.height, before.height), max(grid.width, before.width))
    return sizes


@dataclass(frozen=True)
class CacheFillingSampler(MixedBatchSampler):
    """Completes the teacher caches for some steps at a time, right before the first batch of these is handed out.

    The parts are fixed by step numbers, and each is completed in every process, so that a run that was killed finds
    the same rows to compute, and any number of processes share them.
    """

    caches: tuple[TeacherCache, ...] = ()

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        size = max(1, _ROWS // self.batch_size)  # steps
        begin = start_step - start_step % size
        batches = super().__call__(begin, steps)
        for first in range(begin, steps, size):
            of_steps = list(islice(batches, size))
            for cache in self.caches:
                cache.complete(of_steps)
                if first + size >= steps:
                    cache.finish()
            yield from of_steps[max(0, start_step - first) :]
