"""Which samples make up a step: an order that is a function of the seed, so that a position is just a step number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.data.table import PairTable
from dcclip_cli.errors import DcclipError

Sample = tuple[int, int]  # number in the table, epoch


@dataclass(frozen=True)
class Order:
    """The order of samples, a pure function of the seed and the epoch, so that a position is just a step number.

    `groups` (N,) numbers the samples' captions: a batch holds no two samples of one group, which a contrastive loss
    would take for negatives of each other.
    """

    count: int
    batch_size: int
    seed: int
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.steps_per_epoch:
            raise DcclipError(
                f"batch_size {self.batch_size} is more than the {self.count} pairs there are", "make batch_size smaller"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch_size

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of one epoch, each (batch_size,); samples left over come in another epoch."""
        key = np.array([self.seed, 1 << 63 | epoch], np.uint64)  # a plain list becomes float64 and loses the epoch
        shuffled = np.random.Generator(np.random.Philox(key=key)).permutation(self.count)
        if self.groups is None:
            used = self.steps_per_epoch * self.batch_size
            return list(shuffled[:used].reshape(-1, self.batch_size))
        return list(self._distinct(shuffled))

    def _distinct(self, shuffled: np.ndarray) -> Iterator[np.ndarray]:
        assert self.groups is not None
        waiting = shuffled.tolist()
        for _ in range(self.steps_per_epoch):
            taken: list[int] = []
            repeated: list[int] = []
            seen: set[int] = set()
            for position, sample in enumerate(waiting):
                if len(taken) == self.batch_size:
                    repeated += waiting[position:]
                    break
                group = int(self.groups[sample])
                (repeated if group in seen else taken).append(sample)
                seen.add(group)
            # Too few distinct captions left: fill up with repeats rather than change the batch size.
            missing = self.batch_size - len(taken)
            waiting = repeated[missing:]
            yield np.asarray(taken + repeated[:missing])

    def __call__(self, start_step: int, steps: int) -> Iterator[list[Sample]]:
        """The (sample, epoch) pairs of each step in [start_step, steps)."""
        step = start_step
        while step < steps:
            epoch, within = divmod(step, self.steps_per_epoch)
            for batch in self.epoch(epoch)[within:]:
                if step < steps:
                    yield [(int(sample), epoch) for sample in batch]
                    step += 1


@dataclass(frozen=True)
class Part:
    """An order over the samples of a table that begin at number `first`."""

    order: Order
    first: int = 0


@dataclass(frozen=True)
class Mixture:
    """Steps made of several parts, each in an order of its own: pairs, then pictures alone, then lines of text.

    An epoch is a pass over the first part.
    """

    parts: tuple[Part, ...]

    @property
    def batch_size(self) -> int:
        """Samples of a step, over all processes."""
        return sum(part.order.batch_size for part in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        return self.parts[0].order.steps_per_epoch

    def check_shares(self, processes: int) -> None:
        """Raise DcclipError unless every part of a step can be shared out among so many processes."""
        for part in self.parts:
            if part.order.batch_size % processes:
                raise DcclipError(
                    f"batch_size {part.order.batch_size} can't be shared by {processes} processes",
                    "make it a multiple of the number of processes",
                )

    def share(self, start_step: int, steps: int, process: int = 0, processes: int = 1) -> Iterator[list[Sample]]:
        """What one of `processes` sees of each step in [start_step, steps): its share of every part."""
        for batches in zip(*(part.order(start_step, steps) for part in self.parts), strict=True):
            samples: list[Sample] = []
            for part, batch in zip(self.parts, batches, strict=True):
                size = len(batch) // processes
                mine = batch[process * size : (process + 1) * size]
                samples += [(part.first + number, epoch) for number, epoch in mine]
            yield samples


def caption_groups(table: PairTable) -> np.ndarray:
    """(N,) a number per pair, equal for pairs whose first captions are equal in any language."""
    parent = list(range(len(table)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for language in LANGUAGES:
        first_with: dict[str, int] = {}
        for index, captions in enumerate(table.captions(language)):
            if captions:
                other = first_with.setdefault(captions[0].casefold(), index)
                parent[find(index)] = find(other)
    return np.asarray([find(index) for index in range(len(table))])
