"""The order of samples: a function of the seed and the epoch, with distinct captions, shared among processes."""

import time
import tracemalloc
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair, PairDataset
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler


class Samples(PairDataset):
    """A number of samples with nothing in them but the ids of their first captions."""

    path = Path("samples")

    def __init__(self, count: int, captions: Sequence[Sequence[int]] | None = None) -> None:
        self.count = count
        self.ids = None if captions is None else np.asarray(captions, np.uint64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        raise NotImplementedError

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([indices, indices], 1).astype(np.uint64) + 1 if self.ids is None else self.ids[indices]


def captions(numbers: np.ndarray) -> list[list[int]]:
    """One Chinese and one English caption for each number."""
    return [[2 * number + 1, 2 * number + 2] for number in numbers.tolist()]


def numbers(sampler: EpochBatchSampler, epoch: int = 0) -> list[list[int]]:
    """The samples of the batches of one epoch."""
    steps = sampler.steps_per_epoch
    return [[number for number, _ in batch] for batch in sampler(epoch * steps, (epoch + 1) * steps)]


def flat(batches: list[list[int]]) -> list[int]:
    return [*chain.from_iterable(batches)]


DISTINCT = pytest.mark.parametrize("distinct", [False, True])
SEVEN = captions(np.arange(23) % 7)


@DISTINCT
def test_an_epoch_has_a_sample_at_most_once_and_fills_every_batch(distinct: bool) -> None:
    batches = numbers(EpochBatchSampler(Samples(23, SEVEN), 5, 0, distinct))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    assert len(set(flat(batches))) == 20


def test_epochs_and_seeds_each_have_another_order_and_samples_left_over_are_in_another_epoch() -> None:
    left_over = EpochBatchSampler(Samples(23), 5, 0)
    assert {sample for epoch in range(9) for batch in numbers(left_over, epoch) for sample in batch} == {*range(23)}
    keys = [(0, 0), (0, 1), (0, 2), (1, 0)]
    orders = [flat(numbers(EpochBatchSampler(Samples(50), 10, seed), epoch)) for seed, epoch in keys]
    assert len({tuple(order) for order in orders}) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(50))}


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 9, 17, 20])
@DISTINCT
def test_starting_in_the_middle_gives_the_tail_of_the_whole(start: int, distinct: bool) -> None:
    sampler = EpochBatchSampler(Samples(23, SEVEN), 5, 4, distinct)
    batches = list(sampler(0, 18))
    assert len(batches) == 18
    assert list(sampler(start, 18)) == batches[start:]
    assert [{epoch for _, epoch in step} for step in batches] == [{step // 4} for step in range(18)]


@DISTINCT
def test_batches_and_shares_have_samples_of_each_source_in_proportion(distinct: bool) -> None:
    data = Samples(2613)
    data.sources = (0, 200)  # 1 : 12
    sampler = EpochBatchSampler(data, 104, 0, distinct)
    batches = numbers(sampler)
    assert len({*flat(batches)}) == 25 * 104
    assert list(sampler(13, 40)) == list(sampler(0, 40))[13:]
    counts = np.array([[sum(number < 200 for number in batch[first : first + 26]) for first in range(0, 104, 26)]
                       for batch in batches])  # fmt: skip
    assert counts.min() >= 1 and counts.max() <= 3 and set(counts.sum(1)) <= {7, 8, 9}
    data.sources = (0, 200, 2613)  # hold_out took all that the last one had
    assert numbers(EpochBatchSampler(data, 104, 0, distinct)) == batches


def test_the_first_batch_of_ten_million_samples_takes_a_second_and_160_mb() -> None:
    sampler = EpochBatchSampler(Samples(10_000_000), 1024, seed=0, distinct_captions=True)
    tracemalloc.start()
    began = time.process_time()
    batch = next(sampler(1, 10**6))
    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 3
    assert len(batch) == 1024
    assert peak < 190e6  # two arrays of 80 MB, and the ids of some samples


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_has_no_two_samples_with_one_caption_while_enough_captions_are_left(seed: int) -> None:
    groups = np.arange(60) // 3  # 20 captions, three images each
    remaining = set(range(60))
    batches = numbers(EpochBatchSampler(Samples(60, captions(groups)), 10, seed, distinct_captions=True))
    for number, batch in enumerate(batches):
        distinct = len({int(groups[sample]) for sample in batch})
        assert distinct == min(10, len({int(groups[sample]) for sample in remaining}))
        assert distinct == 10 or number >= 4
        remaining -= set(batch)


def test_samples_put_off_for_their_caption_are_first_in_the_next_batch_and_repeated_where_no_others_are_left() -> None:
    same = EpochBatchSampler(Samples(6, captions(np.zeros(6, int))), 3, 0, distinct_captions=True)
    assert sorted(flat(numbers(same))) == [0, 1, 2, 3, 4, 5]
    data = Samples(6, captions(np.array([0, 0, 0, 1, 1, 1])))
    [waiting] = numbers(EpochBatchSampler(data, 6, seed=3))
    for batch in numbers(EpochBatchSampler(data, 2, seed=3, distinct_captions=True)):
        first = waiting[0]
        other_sample = next(sample for sample in waiting if sample // 3 != first // 3)
        assert batch == [first, other_sample]
        waiting = [sample for sample in waiting if sample not in (first, other_sample)]


def test_pairs_that_share_a_first_caption_in_either_language_are_in_different_batches(tmp_path: Path) -> None:
    pairs = [
        Pair("a", b"", zh=("猫",), en=("cat",)),
        Pair("b", b"", zh=("狗",), en=("Cat",)),  # with a, whatever the case
        Pair("c", b"", zh=("狗",), en=("dog",)),  # with b
        Pair("d", b"", zh=("鸟", "猫"), en=("bird",)),  # only a second caption is shared
    ]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    dataset = open_pairs(tmp_path / "pairs.parquet")
    firsts = (numbers(EpochBatchSampler(dataset, 2, seed, distinct_captions=True))[0] for seed in range(40))
    assert {frozenset(batch) for batch in firsts} == {frozenset(two) for two in ((0, 2), (0, 3), (1, 3), (2, 3))}


def test_samples_without_captions_do_not_conflict() -> None:
    data = Samples(8, [[0, 0]] * 8)
    assert numbers(EpochBatchSampler(data, 4, 0, distinct_captions=True)) == numbers(EpochBatchSampler(data, 4, 0))


def test_a_batch_size_that_is_larger_than_the_data_or_cannot_be_shared_is_named() -> None:
    with pytest.raises(DcclipError, match=r"a step needs 8 samples, but the data has only 7"):
        EpochBatchSampler(Samples(7), 8, seed=0)
    samplers = tuple(EpochBatchSampler(Samples(12), size, seed=0) for size in (4, 3))
    with pytest.raises(DcclipError, match="3 samples per step cannot be split into 2 equal parts"):
        MixedBatchSampler(samplers).check_shares(2)
