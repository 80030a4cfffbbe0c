"""The order of samples: a function of the seed and the epoch, with distinct captions, shared among processes."""

from pathlib import Path

import numpy as np
import pytest

from dcclip_cli.data.dataset import open_pairs, write_parquet
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.samplers import EpochBatchSampler, MixedBatchSampler, caption_groups
from dcclip_cli.errors import DcclipError

GROUPS = pytest.mark.parametrize("groups", [None, np.arange(23) % 7])


@GROUPS
def test_an_epoch_has_a_sample_at_most_once_and_fills_every_batch(groups: np.ndarray | None) -> None:
    batches = EpochBatchSampler(23, 5, seed=0, groups=groups).epoch(0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    assert len(set(np.concatenate(batches).tolist())) == 20


def test_epochs_and_seeds_each_have_another_order_and_samples_left_over_are_in_another_epoch() -> None:
    left_over = EpochBatchSampler(23, 5, seed=0)
    assert {int(sample) for epoch in range(5) for batch in left_over.epoch(epoch) for sample in batch} == {*range(23)}
    keys = [(0, 0), (0, 1), (0, 2), (1, 0)]
    orders = [EpochBatchSampler(50, 50, seed).epoch(epoch)[0].tolist() for seed, epoch in keys]
    assert len({tuple(order) for order in orders}) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(50))}


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9, 17, 20])
@GROUPS
def test_starting_in_the_middle_gives_the_tail_of_the_whole(start: int, groups: np.ndarray | None) -> None:
    sampler = EpochBatchSampler(23, 5, seed=4, groups=groups)
    whole = list(sampler(0, 18))
    assert len(whole) == 18
    assert list(sampler(start, 18)) == whole[start:]
    assert [{epoch for _, epoch in step} for step in whole] == [{step // 4} for step in range(18)]


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_has_no_two_samples_of_one_caption_group_while_enough_groups_are_left(seed: int) -> None:
    groups = np.arange(60) // 3  # 20 captions, three images each
    left = set(range(60))
    for number, batch in enumerate(EpochBatchSampler(60, 10, seed, groups).epoch(0)):
        distinct = len({int(groups[sample]) for sample in batch})
        assert distinct == min(10, len({int(groups[sample]) for sample in left}))
        assert distinct == 10 or number >= 4
        left -= set(batch.tolist())


def test_samples_put_off_for_their_caption_are_first_in_the_next_batch_and_repeated_where_no_others_are_left() -> None:
    batches = EpochBatchSampler(6, 3, seed=0, groups=np.zeros(6, int)).epoch(0)
    assert sorted(np.concatenate(batches).tolist()) == [0, 1, 2, 3, 4, 5]
    sampler = EpochBatchSampler(6, 2, seed=3, groups=np.array([0, 0, 0, 1, 1, 1]))
    waiting = [int(sample) for sample in EpochBatchSampler(6, 6, seed=3).epoch(0)[0]]
    for batch in sampler.epoch(0):
        first = waiting[0]
        other = next(sample for sample in waiting if sample // 3 != first // 3)
        assert batch.tolist() == [first, other]
        waiting = [sample for sample in waiting if sample not in (first, other)]


def test_pairs_that_share_a_first_caption_in_either_language_are_one_group(tmp_path: Path) -> None:
    pairs = [
        Pair("a", b"", zh=("猫",), en=("cat",)),
        Pair("b", b"", zh=("狗",), en=("Cat",)),  # with a, whatever the case
        Pair("c", b"", zh=("狗",), en=("dog",)),  # with b, so with a
        Pair("d", b"", zh=("鸟", "猫"), en=("bird",)),  # only a second caption is shared
        Pair("e", b"", en=("fish",)),
    ]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    groups = caption_groups(open_pairs(tmp_path / "pairs.parquet")).tolist()
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], groups[3], groups[4]}) == 3


def test_every_process_gets_its_share_of_every_sampler() -> None:
    sampler = MixedBatchSampler((EpochBatchSampler(12, 4, seed=0), EpochBatchSampler(6, 2, seed=1, first=12)))
    whole = list(sampler.share(0, 5))
    halves = [list(sampler.share(0, 5, process, 2)) for process in range(2)]
    assert [len(step) for step in whole] == [6] * 5
    for step, one, two in zip(whole, *halves, strict=True):
        assert one[:2] + two[:2] == step[:4] and one[2:] + two[2:] == step[4:]
        assert all(number < 12 for number, _ in step[:4]) and all(number >= 12 for number, _ in step[4:])
    assert list(sampler.share(3, 5)) == whole[3:]


def test_a_batch_size_that_is_larger_than_the_data_or_cannot_be_shared_is_named() -> None:
    with pytest.raises(DcclipError, match=r"batch_size 8 is larger than the data \(7 samples\)"):
        EpochBatchSampler(7, 8, seed=0)
    samplers = tuple(EpochBatchSampler(12, size, seed=0) for size in (4, 3))
    with pytest.raises(DcclipError, match="batch_size 3 cannot be split among 2 processes"):
        MixedBatchSampler(samplers).check_shares(2)
