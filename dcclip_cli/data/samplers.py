"""Batch samplers whose order depends on the seed alone, so that a run resumes by its step, and the data of a stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dcclip_cli.data.dataset import ConcatDataset, open_pairs
from dcclip_cli.data.options import COLLECTED, DataOptions
from dcclip_cli.data.pair import LANGUAGES, PairDataset
from dcclip_cli.data.unpaired import open_images, open_texts, with_phrases
from dcclip_cli.errors import DcclipError
from dcclip_cli.run_dir import RunDir

Sample = tuple[int, int]  # index in the dataset, epoch


@dataclass(frozen=True)
class EpochBatchSampler:
    """Batches of the `count` samples from index `first` on, in an order that is a pure function of seed and epoch.

    `groups` (N,) numbers the samples by caption: a batch has no two samples of one group, because a contrastive loss
    would use them as negatives of each other.
    """

    count: int
    batch_size: int
    seed: int
    groups: np.ndarray | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if not self.steps_per_epoch:
            what = f"batch_size {self.batch_size} is larger than the data ({self.count} samples)"
            raise DcclipError(what, "make batch_size smaller")

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch_size

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch, (batch_size,) each, without `first`; what is left over is used in other epochs."""
        key = np.array([self.seed, 1 << 63 | epoch], np.uint64)  # a plain list becomes float64 and loses the epoch
        shuffled = np.random.Generator(np.random.Philox(key=key)).permutation(self.count)
        if self.groups is None:
            used = self.steps_per_epoch * self.batch_size
            return list(shuffled[:used].reshape(-1, self.batch_size))
        return list(self._distinct(shuffled))

    def _distinct(self, shuffled: np.ndarray) -> Iterator[np.ndarray]:
        assert self.groups is not None
        waiting = deque(shuffled.tolist())
        for _ in range(self.steps_per_epoch):
            taken: list[int] = []
            repeated: list[int] = []
            seen: set[int] = set()
            while waiting and len(taken) < self.batch_size:
                sample = waiting.popleft()
                group = int(self.groups[sample])
                (repeated if group in seen else taken).append(sample)
                seen.add(group)
            # Too few distinct captions left: fill up with repeats rather than change the batch size.
            missing = self.batch_size - len(taken)
            yield np.asarray(taken + repeated[:missing])
            waiting.extendleft(reversed(repeated[missing:]))

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        """The (index, epoch) samples of each step in [start_step, steps)."""
        step = start_step
        while step < steps:
            epoch, within = divmod(step, self.steps_per_epoch)
            for batch in self.epoch(epoch)[within:]:
                if step < steps:
                    yield [(self.first + int(sample), epoch) for sample in batch]
                    step += 1


@dataclass(frozen=True)
class MixedBatchSampler:
    """Batches put together from several samplers: pairs, then images without captions, then texts without images.

    An epoch is an epoch of the first sampler.
    """

    samplers: tuple[EpochBatchSampler, ...]

    @property
    def batch_size(self) -> int:
        """Samples of a step, over all processes."""
        return sum(sampler.batch_size for sampler in self.samplers)

    @property
    def steps_per_epoch(self) -> int:
        return self.samplers[0].steps_per_epoch

    def check_shares(self, processes: int) -> None:
        """Raise DcclipError unless the batches of every sampler can be split equally among the processes."""
        for sampler in self.samplers:
            if sampler.batch_size % processes:
                what = f"batch_size {sampler.batch_size} cannot be split among {processes} processes"
                raise DcclipError(what, "make it a multiple of the number of processes")

    def share(self, start_step: int, steps: int, process: int = 0, processes: int = 1) -> Iterator[list[Sample]]:
        """The samples that one of `processes` gets in each step of [start_step, steps): its share of every sampler."""
        for batches in zip(*(sampler(start_step, steps) for sampler in self.samplers), strict=True):
            shares = [(batch, len(batch) // processes) for batch in batches]
            yield [sample for batch, size in shares for sample in batch[process * size : (process + 1) * size]]


def caption_groups(dataset: PairDataset) -> np.ndarray:
    """(N,) a group number per pair, equal for pairs whose first captions are equal in any language."""
    parent = list(range(len(dataset)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for language in LANGUAGES:
        first_with: dict[str, int] = {}
        for index, captions in enumerate(dataset.captions(language)):
            if captions:
                other = first_with.setdefault(captions[0].casefold(), index)
                parent[find(index)] = find(other)
    return np.asarray([find(index) for index in range(len(dataset))])


# ---- the training data of a stage


@dataclass(frozen=True)
class StageData:
    """The data that a stage uses, and how much of each kind per step.

    None for images or texts per step: as many as pairs; 0: none. With `distinct_captions` no two pairs of a step have
    the same first caption.
    """

    options: DataOptions
    batch_size: int
    images_per_step: int | None = None
    texts_per_step: int | None = None
    distinct_captions: bool = False


@dataclass(frozen=True)
class TrainingData:
    """One dataset of all samples, the sampler of its batches, and the datasets by kind: pairs, images, texts."""

    dataset: PairDataset
    sampler: MixedBatchSampler
    datasets: dict[str, PairDataset]  # only pairs may have embeddings in place of images


def open_training_data(stage: StageData, run: RunDir, seed: int) -> TrainingData:
    """The data of a stage. Raises DcclipError where any of it cannot be loaded."""
    data = stage.options
    datasets: dict[str, PairDataset] = {}
    if data.train is not None:
        collected = run.stage("collect")
        if data.train == COLLECTED and not collected.is_dir():
            raise DcclipError("data.train is 'collect', but nothing has been collected", "run: dcclip collect RECIPE")
        datasets["pairs"] = open_pairs(collected if data.train == COLLECTED else data.train)
    if data.images is not None and stage.images_per_step != 0:
        datasets["images"] = open_images(data.images)
    if data.texts is not None and stage.texts_per_step != 0:
        texts = open_texts(data.texts)
        datasets["texts"] = with_phrases(texts, data.phrases) if data.phrases else texts
    if not datasets:
        hint = "set data.train, or leave images_per_step: 0 and texts_per_step: 0 out"
        raise DcclipError("a step has no pairs, no images and no texts", hint)
    sizes = {"images": stage.images_per_step, "texts": stage.texts_per_step}
    joined = ConcatDataset(list(datasets.values()))
    samplers = []
    for number, (kind, dataset) in enumerate(datasets.items()):
        own_seed = seed + (number << 32)  # equal sizes must not mean equal orders
        groups = caption_groups(dataset) if kind == "pairs" and stage.distinct_captions else None
        size = sizes.get(kind) or stage.batch_size
        samplers.append(EpochBatchSampler(len(dataset), size, own_seed, groups, joined.firsts[number]))
    dataset = joined if len(datasets) > 1 else next(iter(datasets.values()))
    return TrainingData(dataset, MixedBatchSampler(tuple(samplers)), datasets)
