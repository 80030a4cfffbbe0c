"""The captions that a student's vocabulary is made from."""

from pathlib import Path

import pytest

from dcclip_cli.data.pair import Pair, PairDataset
from dcclip_cli.train.student import sample_captions


class Numbered(PairDataset):
    """Pairs with one Chinese caption each, and two English ones each second pair."""

    path = Path("numbered")

    def __init__(self, count: int) -> None:
        self._captions = {
            "zh": [(f"第{number}张",) for number in range(count)],
            "en": [(f"image {number}", f"photo {number}") if number % 2 else () for number in range(count)],
        }

    def __len__(self) -> int:
        return len(self._captions["zh"])

    def __getitem__(self, index: int) -> Pair:
        raise AssertionError("images are not needed")


def test_few_captions_are_all_used_in_order_chinese_first() -> None:
    assert sample_captions(Numbered(4), 1_000, seed=0) == [
        *("第0张", "第1张", "第2张", "第3张"),
        *("image 1", "photo 1", "image 3", "photo 3"),
    ]


@pytest.mark.parametrize("pairs", [1_500, 20_000])
def test_of_many_captions_a_sample_is_used_that_depends_on_the_seed_alone(pairs: int) -> None:
    dataset = Numbered(pairs)  # 2 captions a pair
    sampled = sample_captions(dataset, 1_000, seed=0)
    assert 900 < len(sampled) < 1_100 and len(set(sampled)) == len(sampled)
    assert sampled == sample_captions(dataset, 1_000, seed=0) != sample_captions(dataset, 1_000, seed=1)
    numbers = [int(caption[1:-1]) for caption in sampled if caption.startswith("第")]
    assert numbers == sorted(numbers) and len(numbers) == pytest.approx(500, abs=50)
    assert sum(numbers) / len(numbers) == pytest.approx(pairs / 2, rel=0.1)
