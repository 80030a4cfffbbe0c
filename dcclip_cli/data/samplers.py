"""Batch samplers whose order depends on the seed alone, so that a run resumes by its step, and the
data of a stage.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, pairwise

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message
from dcclip_cli.core.progress import Progress
from dcclip_cli.core.run_dir import RunDir
from dcclip_cli.data.dataset import recipe_pairs
from dcclip_cli.data.options import COLLECTED, DataOptions
from dcclip_cli.data.pair import ConcatDataset, PairDataset
from dcclip_cli.data.unpaired import open_texts, recipe_images, with_phrases

Sample = tuple[int, int]  # index in the dataset, epoch
_LOOKS = 8  # samples that wait and are looked at in a step, for each sample of a batch
_IDS_AT_A_TIME = 65_536


def check_size(size: int, samples: int) -> None:
    """Raise DcclipError for more samples per step than there are."""
    if size > samples:
        message = Message("a step needs {} samples, but the data has only {}", size, samples)
        raise DcclipError(
            message, "reduce batch_size, or images_per_step or texts_per_step if they are set"
        )


def check_shares(size: int, parts: int) -> None:
    """Raise DcclipError unless the samples of a step can be split into so many equal parts."""
    if size % parts:
        message = Message("{} samples per step cannot be split into {} equal parts", size, parts)
        hint = Message(
            "use a multiple of {} (parts of a batch times processes), or increase "
            "images_per_part if it is set",
            parts,
        )
        raise DcclipError(message, hint)


@dataclass(frozen=True)
class EpochBatchSampler:
    """Batches of a dataset's samples, whose numbers begin with `first`: a pure function of seed,
    epoch and step.

    All samples are shuffled together. Batches, and the shares of processes, have samples of the
    dataset's sources in proportion.

    With `distinct_captions`, a batch has no two samples that share a first caption in any
    language, because a contrastive loss would use them as negatives of each other.
    """

    dataset: PairDataset
    batch_size: int
    seed: int
    distinct_captions: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        check_size(self.batch_size, len(self.dataset))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset) // self.batch_size

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        """The (index, epoch) samples of each step in [start_step, steps)."""
        step = start_step
        while step < steps:
            epoch, skipped = divmod(step, self.steps_per_epoch)
            for batch in islice(self._batches(epoch), skipped, skipped + steps - step):
                yield [(self.first + sample, epoch) for sample in batch]
                step += 1

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        order = self._order(epoch)
        if self.distinct_captions:
            yield from self._distinct_batches(order)
            return
        for first in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            yield order[first : first + self.batch_size].tolist()

    def _order(self, epoch: int) -> np.ndarray:
        """All samples of an epoch, shuffled."""
        key = np.array(
            [self.seed, 1 << 63 | epoch], np.uint64
        )  # a plain list becomes float64 and loses the epoch
        random = np.random.Generator(np.random.Philox(key=key))
        ends = sorted({*self.dataset.sources, len(self.dataset)})
        orders = [random.permutation(np.arange(first, end)) for first, end in pairwise(ends)]
        if len(orders) == 1:
            return orders[0]
        # Each of a source's n samples is at a random place in its nth part of the epoch.
        ranks = [
            (np.arange(len(order)) + random.random(len(order))) / len(order) for order in orders
        ]
        return np.concatenate(orders)[np.concatenate(ranks).argsort(kind="stable")]

    def _distinct_batches(self, order: np.ndarray) -> Iterator[list[int]]:
        """Batches of distinct captions: repeated ones wait for a later batch, and fill up the last
        batches.
        """
        upcoming = self._with_caption_ids(order)
        waiting = deque[tuple[int, int, int]]()
        most_looks = _LOOKS * self.batch_size
        for _ in range(self.steps_per_epoch):
            batch: list[int] = []
            caption_ids: set[int] = set()
            repeated: list[tuple[int, int, int]] = []
            # Where very many wait, a step looks at some of them, so that the time stays linear.
            looks = min(len(waiting), most_looks)
            entries = chain((waiting.popleft() for _ in range(looks)), upcoming)
            while len(batch) < self.batch_size and (entry := next(entries, None)) is not None:
                sample, chinese, english = entry
                if chinese in caption_ids or english in caption_ids:
                    repeated.append(entry)
                else:
                    batch.append(sample)
                    caption_ids.update((chinese, english))
                    caption_ids.discard(0)  # no caption
            if looks == most_looks:
                waiting.extend(repeated)  # the next step looks at others
            else:
                waiting.extendleft(reversed(repeated))
            # Too few distinct captions left: fill up with repeats rather than change the batch
            # size.
            while len(batch) < self.batch_size:
                batch.append(waiting.popleft()[0])
            yield batch

    def _with_caption_ids(self, order: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Each sample with the ids of its first Chinese and first English caption."""
        for first in range(0, len(order), _IDS_AT_A_TIME):
            samples = order[first : first + _IDS_AT_A_TIME]
            chinese, english = self.dataset.first_caption_ids(samples).T
            yield from zip(samples.tolist(), chinese.tolist(), english.tolist(), strict=True)


@dataclass(frozen=True)
class MixedBatchSampler:
    """Batches put together from several samplers: pairs, then images without captions, then texts
    without images.

    An epoch is an epoch of the first sampler.
    """

    samplers: tuple[EpochBatchSampler, ...]

    @property
    def batch_size(self) -> int:
        """Samples of a step, over all processes."""
        return sum(sampler.batch_size for sampler in self.samplers)

    @property
    def images_per_step(self) -> int:
        """Images of a step, over all processes."""
        return sum(sampler.batch_size for sampler in self.samplers if sampler.dataset.num_images)

    @property
    def steps_per_epoch(self) -> int:
        return self.samplers[0].steps_per_epoch

    def check_shares(self, parts: int) -> None:
        """Raise DcclipError unless the batches of every sampler can be split into so many equal
        parts.
        """
        for sampler in self.samplers:
            check_shares(sampler.batch_size, parts)

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        """The samples of each step in [start_step, steps), over all processes; a Collator takes a
        process's share.
        """
        for batches in zip(*(sampler(start_step, steps) for sampler in self.samplers), strict=True):
            yield [*chain.from_iterable(batches)]


@dataclass(frozen=True)
class TrainingData:
    """One dataset of all samples, the sampler of its batches, and the datasets by kind: pairs,
    images, texts.
    """

    dataset: PairDataset
    sampler: MixedBatchSampler
    datasets: dict[str, PairDataset]  # only pairs may have embeddings in place of images


def open_training_data(
    data: DataOptions,
    sizes: Mapping[str, int],
    run: RunDir,
    seed: int,
    progress: Progress | None = None,
    distinct_captions: bool = False,
) -> TrainingData:
    """The data of a stage, whose `sizes` are the samples per step of each kind: pairs, images,
    texts.

    With `distinct_captions` no two pairs of a step have the same first caption. Raises DcclipError
    where any of it cannot be loaded.
    """
    datasets: dict[str, PairDataset] = {}
    if "pairs" in sizes and data.train is not None:
        collected = run.stage("collect")
        if data.train == COLLECTED and not collected.is_dir():
            raise DcclipError(
                "data.train is 'collect', but nothing has been collected",
                "run: dcclip collect RECIPE",
            )
        if pairs := recipe_pairs(data.after_collect(collected), "train", progress):
            datasets["pairs"] = pairs
    if "images" in sizes and (images := recipe_images(data, "train", progress)):
        datasets["images"] = images
    if "texts" in sizes and data.texts is not None:
        texts = open_texts(data.texts, data.columns, progress)
        datasets["texts"] = with_phrases(texts, data.phrases) if data.phrases else texts
    joined = ConcatDataset(list(datasets.values()))
    samplers = []
    for number, (kind, dataset) in enumerate(datasets.items()):
        own_seed = seed + (number << 32)  # equal sizes must not mean equal orders
        distinct = kind == "pairs" and distinct_captions
        first = joined.firsts[number]
        samplers.append(EpochBatchSampler(dataset, sizes[kind], own_seed, distinct, first))
    dataset = joined if len(datasets) > 1 else next(iter(datasets.values()))
    return TrainingData(dataset, MixedBatchSampler(tuple(samplers)), datasets)
