"""Batch samplers whose order depends on the seed alone, so that a run resumes by its step, and the data of a stage."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, pairwise

import numpy as np

from dcclip_cli.data.dataset import recipe_pairs
from dcclip_cli.data.options import COLLECTED, SHUFFLE_WINDOW, DataOptions
from dcclip_cli.data.pair import ConcatDataset, PairDataset
from dcclip_cli.data.unpaired import open_texts, recipe_images, with_phrases
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.progress import Progress
from dcclip_cli.run_dir import RunDir

Sample = tuple[int, int]  # index in the dataset, epoch
_LOOKS = 8  # samples that wait and are looked at in a step, for each sample of a batch


def check_size(size: int, samples: int) -> None:
    """Raise DcclipError for more samples per step than there are."""
    if size > samples:
        message = Message("a step needs {} samples, but the data has only {}", size, samples)
        raise DcclipError(message, "reduce batch_size, or images_per_step or texts_per_step if they are set")


def check_shares(size: int, parts: int) -> None:
    """Raise DcclipError unless the samples of a step can be split into so many equal parts."""
    if size % parts:
        message = Message("{} samples per step cannot be split into {} equal parts", size, parts)
        hint = Message(
            "use a multiple of {} (parts of a batch times processes), or increase images_per_part if it is set", parts
        )
        raise DcclipError(message, hint)


@dataclass(frozen=True)
class EpochBatchSampler:
    """Batches of a dataset's samples, whose numbers begin with `first`: a pure function of seed, epoch and step.

    Up to `window` samples are shuffled whole. Of more, the blocks of the dataset are shuffled, and then the samples of
    one window of blocks after the other, so that memory and the time to reach any step do not grow with the data.
    Windows, batches and shares of these have samples of the dataset's sources in proportion, if a window has room for
    a block of each source.

    With `distinct_captions`, a batch has no two samples that share a first caption in any language, because a
    contrastive loss would use them as negatives of each other.

    An epoch's blocks are split among `nodes`, machines or groups of processes. Sample i of a batch is from the blocks
    of node i % nodes. Only those of `local_nodes` are announced to the dataset.
    """

    dataset: PairDataset
    batch_size: int
    seed: int
    window: int = SHUFFLE_WINDOW
    distinct_captions: bool = False
    first: int = 0
    nodes: int = 1
    local_nodes: range = range(1)

    def __post_init__(self) -> None:
        check_size(self.batch_size, len(self.dataset))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset) // self.batch_size

    @property
    def steps_per_window(self) -> int:
        """Windows have equal numbers of steps, but for the last one."""
        windows = -(-len(self.dataset) // max(self.window, self.batch_size))
        return -(-self.steps_per_epoch // windows)

    @property
    def _one_window(self) -> bool:
        """Whether all samples are shuffled together, whatever their blocks."""
        return self.steps_per_window == self.steps_per_epoch and self.nodes == 1

    @property
    def window_of_all_sources(self) -> int:
        """The smallest window that has room for a block of each source."""
        return -(-len(self.dataset.sources) * len(self.dataset) // len(self.dataset.blocks))

    @cached_property
    def _sources(self) -> list[int]:
        """The first sample of each source that has any, and the end."""
        sources = self.dataset.sources[: None if self.window_of_all_sources <= self.window else 1]
        return sorted({*sources, len(self.dataset)})

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        """The (index, epoch) samples of each step in [start_step, steps).

        The data of a window is announced to the dataset one window ahead.
        """
        step = start_step
        while step < steps:
            epoch, within = divmod(step, self.steps_per_epoch)
            window, skipped = divmod(within, self.steps_per_window)
            if step == start_step:
                self._announce(epoch, window)
            following = step - skipped + self._steps_of(window)
            if following < steps:
                next_epoch, place = divmod(following, self.steps_per_epoch)
                self._announce(next_epoch, place // self.steps_per_window)
            for batch in islice(self._batches(epoch, window), skipped, skipped + steps - step):
                yield [(self.first + sample, epoch) for sample in batch]
                step += 1

    def _steps_of(self, window: int) -> int:
        return min(self.steps_per_window, self.steps_per_epoch - window * self.steps_per_window)

    def _announce(self, epoch: int, window: int) -> None:
        members = self._members(epoch, window)
        self.dataset.will_need(np.concatenate([*chain.from_iterable(members[node] for node in self.local_nodes)]))

    def _members(self, epoch: int, window: int) -> list[list[np.ndarray]]:
        """The samples of a window by node and source, block by block.

        Those that fill no batch are in the last node's last window.
        """
        if self._one_window:
            return [[np.arange(*ends) for ends in pairwise(self._sources)]]
        starts, remaining, share = self.dataset.blocks, len(self.dataset), self.batch_size // self.nodes
        block_ends = np.append(starts[1:], remaining)
        # Each node has a part of all samples, and a window has a part of each node's.
        begins = (np.arange(self.nodes) * self.steps_per_epoch + window * self.steps_per_window) * share
        ends = begins + self._steps_of(window) * share
        if (window + 1) * self.steps_per_window >= self.steps_per_epoch:
            ends[-1] = remaining
        random = _random(self.seed, epoch)
        members: list[list[np.ndarray]] = [[] for _ in range(self.nodes)]
        for first, last in pairwise(self._sources):
            # A part of the remaining sources is divided again, so that parts fit together.
            first_places, end_places = begins * (last - first) // remaining, ends * (last - first) // remaining
            begins, ends, remaining = begins - first_places, ends - end_places, remaining - (last - first)
            blocks = slice(*np.searchsorted(starts, [first, last]))
            order = random.permutation(len(starts[blocks]))
            stops = np.cumsum((block_ends - starts)[blocks][order])  # of the blocks in the source's sequence
            for node, (first_place, end_place) in enumerate(zip(first_places, end_places, strict=True)):
                places = np.arange(first_place, end_place)
                offsets = (block_ends[blocks][order] - stops)[np.searchsorted(stops, places, side="right")]
                members[node].append(offsets + places)
        return members

    def _batches(self, epoch: int, window: int) -> Iterator[list[int]]:
        random = _random(self.seed, epoch, 0 if self._one_window else window + 1)
        share, steps, shuffled = self.batch_size // self.nodes, self._steps_of(window), list[np.ndarray]()
        for members in self._members(epoch, window):
            orders = [random.permutation(samples) for samples in members]
            # Each of a source's n samples is at a random place in its nth part of the window.
            ranks = [(np.arange(len(order)) + random.random(len(order))) / len(order) for order in orders]
            shuffled.append(np.concatenate(orders)[np.concatenate(ranks).argsort(kind="stable")])
        if not self.distinct_captions:
            shares = [samples[: steps * share].reshape(steps, share) for samples in shuffled]
            yield from (batch.tolist() for batch in np.stack(shares, -1).reshape(steps, -1))
            return
        # Repeated captions wait for a later batch, and fill up the last ones.
        new, waiting = list[Iterator[tuple[int, int, int]]](), [deque[tuple[int, int, int]]() for _ in shuffled]
        for samples in shuffled:
            chinese, english = self.dataset.first_caption_ids(samples).T
            new.append(zip(samples.tolist(), chinese.tolist(), english.tolist(), strict=True))
        for _ in range(steps):
            batch: list[list[int]] = [[] for _ in shuffled]
            caption_ids: set[int] = set()
            for chosen, upcoming, queue in zip(batch, new, waiting, strict=True):
                repeated: list[tuple[int, int, int]] = []
                # Where very many wait, a step looks at some of them, so that the time stays linear.
                looks = min(len(queue), _LOOKS * share)
                entries = chain((queue.popleft() for _ in range(looks)), upcoming)
                while len(chosen) < share and (entry := next(entries, None)) is not None:
                    if entry[1] in caption_ids or entry[2] in caption_ids:
                        repeated.append(entry)
                    else:
                        chosen.append(entry[0])
                        caption_ids.update(entry[1:])
                        caption_ids.discard(0)  # no caption
                if looks == _LOOKS * share:
                    queue.extend(repeated)  # the next step looks at others
                else:
                    queue.extendleft(reversed(repeated))
                # Too few distinct captions left: fill up with repeats rather than change the batch size.
                chosen += [queue.popleft()[0] for _ in range(share - len(chosen))]
            yield [*chain.from_iterable(zip(*batch, strict=True))]


def _random(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    key = np.array([seed, 1 << 63 | epoch], np.uint64)  # a plain list becomes float64 and loses the epoch
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, stream]))


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
    def images_per_step(self) -> int:
        """Images of a step, over all processes."""
        return sum(sampler.batch_size for sampler in self.samplers if sampler.dataset.num_images)

    @property
    def steps_per_epoch(self) -> int:
        return self.samplers[0].steps_per_epoch

    def check_shares(self, parts: int) -> None:
        """Raise DcclipError unless the batches of every sampler can be split into so many equal parts."""
        for sampler in self.samplers:
            check_shares(sampler.batch_size, parts)

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        """The samples of each step in [start_step, steps), over all processes; a Collator takes a process's share."""
        for batches in zip(*(sampler(start_step, steps) for sampler in self.samplers), strict=True):
            yield [*chain.from_iterable(batches)]


@dataclass(frozen=True)
class TrainingData:
    """One dataset of all samples, the sampler of its batches, and the datasets by kind: pairs, images, texts."""

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
    split: Callable[[], tuple[int, range]] = lambda: (1, range(1)),
) -> TrainingData:
    """The data of a stage, whose `sizes` are the samples per step of each kind: pairs, images, texts.

    With `distinct_captions` no two pairs of a step have the same first caption. `split` returns among how many nodes
    blocks in object stores are split, and which of these are here. Raises DcclipError where any of it cannot be loaded.
    """
    datasets: dict[str, PairDataset] = {}
    if "pairs" in sizes and data.train is not None:
        collected = run.stage("collect")
        if data.train == COLLECTED and not collected.is_dir():
            raise DcclipError("data.train is 'collect', but nothing has been collected", "run: dcclip collect RECIPE")
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
        distinct, first = kind == "pairs" and distinct_captions, joined.firsts[number]
        nodes = split() if dataset.is_remote else (1, range(1))
        samplers.append(EpochBatchSampler(dataset, sizes[kind], own_seed, data.shuffle_window, distinct, first, *nodes))
        room = min(samplers[-1].window_of_all_sources, len(dataset))
        if progress and len(dataset.sources) > 1 and data.shuffle_window < room:
            line = Message(
                "warning: data.shuffle_window: {} has no room for a block of each of {} sources, so batches lack "
                "samples of some sources; increase it to {}",
                *(data.shuffle_window, len(dataset.sources), room),
            )
            progress.say(line)
    dataset = joined if len(datasets) > 1 else next(iter(datasets.values()))
    return TrainingData(dataset, MixedBatchSampler(tuple(samplers)), datasets)
