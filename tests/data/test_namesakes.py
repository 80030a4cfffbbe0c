"""Pictures of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcclip_cli.data.namesakes import Namesakes
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.table import open_pairs, write_parquet


@pytest.fixture
def namesakes(tmp_path: Path) -> Namesakes:
    """Pairs 0, 2 and 4 are cats: by their English name, by their Chinese one. 1 and 3 are alone."""
    names = [("cat", "猫"), ("dog", "狗"), ("Cat", "小猫"), ("cup", "杯子"), ("kitty", "猫")]
    pairs = [Pair(str(number), b"", zh=(zh, "动物"), en=(en, "animal")) for number, (en, zh) in enumerate(names)]
    write_parquet(tmp_path / "pairs.parquet", pairs)
    return Namesakes(open_pairs(tmp_path / "pairs.parquet"))


@pytest.mark.parametrize(("index", "others"), [(0, [2, 4]), (2, [0, 4]), (4, [0, 2])])
def test_namesakes_share_a_first_caption_in_some_language(namesakes: Namesakes, index: int, others: list[int]) -> None:
    assert [namesakes.one_of(index, share) for share in (0.0, 0.49, 0.5, 0.99)] == [
        others[0],
        others[0],
        others[1],
        others[1],
    ]


def test_a_later_caption_makes_no_namesake(namesakes: Namesakes) -> None:
    assert namesakes.one_of(1, 0.0) is None
    assert namesakes.one_of(3, 0.5) is None
