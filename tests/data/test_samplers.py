"""The order of samples: a function of the seed and the epoch, with distinct captions, shared among processes."""

import time
import tracemalloc
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair, PairDataset
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler
from dcclip_cli.errors import DcclipError


class Samples(PairDataset):
    """A number of samples with nothing in them but the ids of their first captions, in blocks of a size."""

    path = Path("samples")

    def __init__(self, count: int, captions: Sequence[Sequence[int]] | None = None, block: int = 4) -> None:
        self.count, self.block = count, block
        self.ids = None if captions is None else np.asarray(captions, np.uint64)
        self.announced: list[set[int]] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        raise NotImplementedError

    @property
    def blocks(self) -> np.ndarray:
        return np.arange(0, self.count, self.block)

    def first_caption_ids(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([indices, indices], 1).astype(np.uint64) + 1 if self.ids is None else self.ids[indices]

    def will_need(self, indices: np.ndarray) -> None:
        self.announced.append(set(indices.tolist()))


def captions(numbers: np.ndarray) -> list[list[int]]:
    """One Chinese and one English caption for each number."""
    return [[2 * number + 1, 2 * number + 2] for number in numbers.tolist()]


def numbers(sampler: EpochBatchSampler, epoch: int = 0) -> list[list[int]]:
    """The samples of the batches of one epoch."""
    steps = sampler.steps_per_epoch
    return [[number for number, _ in batch] for batch in sampler(epoch * steps, (epoch + 1) * steps)]


def flat(batches: list[list[int]]) -> list[int]:
    return [*chain.from_iterable(batches)]


ORDERS = pytest.mark.parametrize(
    ("window", "distinct", "nodes"),
    [
        *((100, False, 1), (100, True, 1), (7, False, 1), (7, True, 1), (10, False, 1), (1, True, 1)),
        *((100, False, 5), (100, True, 5), (7, True, 5), (10, False, 5)),
    ],
)
SEVEN = captions(np.arange(23) % 7)


@ORDERS
def test_an_epoch_has_a_sample_at_most_once_and_fills_every_batch(window: int, distinct: bool, nodes: int) -> None:
    batches = numbers(EpochBatchSampler(Samples(23, SEVEN), 5, 0, window, distinct, nodes=nodes))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    assert len(set(flat(batches))) == 20


@pytest.mark.parametrize("window", [100, 7])
def test_epochs_and_seeds_each_have_another_order_and_samples_left_over_are_in_another_epoch(window: int) -> None:
    left_over = EpochBatchSampler(Samples(23), 5, 0, window)
    assert {sample for epoch in range(9) for batch in numbers(left_over, epoch) for sample in batch} == {*range(23)}
    keys = [(0, 0), (0, 1), (0, 2), (1, 0)]
    orders = [flat(numbers(EpochBatchSampler(Samples(50), 10, seed, window), epoch)) for seed, epoch in keys]
    assert len({tuple(order) for order in orders}) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(50))}


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 9, 17, 20])
@ORDERS
def test_starting_in_the_middle_gives_the_tail_of_the_whole(
    start: int, window: int, distinct: bool, nodes: int
) -> None:
    sampler = EpochBatchSampler(Samples(23, SEVEN), 5, 4, window, distinct, nodes=nodes)
    batches = list(sampler(0, 18))
    assert len(batches) == 18
    assert list(sampler(start, 18)) == batches[start:]
    assert [{epoch for _, epoch in step} for step in batches] == [{step // 4} for step in range(18)]


def test_a_window_has_the_samples_of_consecutive_shuffled_blocks_in_any_order() -> None:
    sampler = EpochBatchSampler(Samples(103, block=10), 5, seed=0, window=40)
    assert (sampler.steps_per_epoch, sampler.steps_per_window) == (20, 7)  # 20 steps in three windows: 7, 7, 6
    batches = numbers(sampler)
    blocks = []
    for window in (batches[:7], batches[7:14], batches[14:]):
        samples = flat(window)
        of_blocks = [sample // 10 for sample in samples]
        assert len(set(of_blocks)) <= 5  # 35 samples: at most three whole blocks and parts of two
        assert samples != sorted(samples) and of_blocks != sorted(of_blocks)  # shuffled among the blocks
        blocks.append(set(of_blocks))
    assert all(len(block & next_block) <= 1 for block, next_block in pairwise(blocks))
    assert [max(block) - min(block) for block in blocks] != [3, 3, 3]  # the blocks themselves are shuffled


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("window", [400, 5000])
def test_batches_and_shares_have_samples_of_each_source_in_proportion(window: int, distinct: bool) -> None:
    data = Samples(2613, block=20)
    data.sources = (0, 200)  # 1 : 12
    sampler = EpochBatchSampler(data, 104, 0, window, distinct)
    batches = numbers(sampler)
    assert len({*flat(batches)}) == 25 * 104
    assert list(sampler(13, 40)) == list(sampler(0, 40))[13:]
    counts = np.array([[sum(number < 200 for number in batch[first : first + 26]) for first in range(0, 104, 26)]
                       for batch in batches])  # fmt: skip
    assert counts.min() >= 1 and counts.max() <= 3 and set(counts.sum(1)) <= {7, 8, 9}
    data.sources = (0, 200, 2613)  # hold_out took all that the last one had
    assert numbers(EpochBatchSampler(data, 104, 0, window, distinct)) == batches
    assert numbers(EpochBatchSampler(data, 104, 0, window=30)) == numbers(
        EpochBatchSampler(Samples(2613, block=20), 104, 0, 30)
    )


def test_the_samples_of_a_window_are_announced_one_window_ahead() -> None:
    data = Samples(60, block=10)
    sampler = EpochBatchSampler(data, 5, seed=0, window=20)
    batches = numbers(sampler)
    windows = [set(flat(batches[start : start + 4])) for start in (0, 4, 8)]
    data.announced.clear()
    steps = sampler(1, 13)  # an epoch has 12 steps
    next(steps)
    assert data.announced == windows[:2]
    assert len(list(steps)) == 11
    assert data.announced[:3] == windows and len(data.announced) == 4  # the last: a window of the next epoch


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("window", [4_000, 480])
def test_each_node_has_its_own_blocks_of_each_source_and_an_equal_share_of_each_batch(
    window: int, distinct: bool
) -> None:
    data = Samples(2_400, captions(np.arange(2_400) // 3), block=10)
    data.sources = (0, 600)
    sampler = EpochBatchSampler(data, 24, 0, window, distinct, nodes=4)
    batches = numbers(sampler)
    assert sorted(flat(batches)) == [*range(2_400)]
    shares = [[number for batch in batches for number in batch[node::4]] for node in range(4)]
    assert [len(share) for share in shares] == [600] * 4
    blocks = [{number // 10 for number in share} for share in shares]
    assert sum(map(len, blocks)) <= 240 + 2 * 3  # a block of a source may be shared by two neighbours
    assert [sum(number < 600 for number in share) for share in shares] == [150] * 4
    if distinct and window == 4_000:  # the last batches of each window are filled up
        assert {len({number // 3 for number in batch}) for batch in batches[:50]} == {24}
    other = EpochBatchSampler(data, 24, 0, window, distinct, nodes=4, local_nodes=range(1, 3))
    data.announced.clear()
    assert list(other(0, sampler.steps_per_epoch)) == list(sampler(0, sampler.steps_per_epoch))
    announced = set().union(*data.announced[: len(data.announced) // 2])
    assert announced == {*shares[1], *shares[2]}


def test_the_first_batch_of_ten_million_samples_takes_little_time_and_memory() -> None:
    sampler = EpochBatchSampler(Samples(10_000_000, block=8_192), 1024, seed=0, distinct_captions=True)
    began = time.process_time()
    batch = next(sampler(sampler.steps_per_epoch * 3 // 2, 10**6))
    assert time.process_time() - began < 1  # measured: 0.03 s
    assert len(batch) == 1024
    tracemalloc.start()
    next(sampler(1, 10**6))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6  # measured: 18 MB; a permutation of all is 80 MB


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
