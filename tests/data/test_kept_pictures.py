"""What a reading process keeps of its pictures."""

from __future__ import annotations

import pytest
from PIL import Image

from dcclip_cli.data.collator import ImageCache


class Maker:
    """Makes pictures of one size and counts them."""

    def __init__(self, mode: str = "RGB") -> None:
        self.made, self._mode = 0, mode

    def __call__(self) -> Image.Image:
        self.made += 1
        return Image.new(self._mode, (10, 10), self.made)


def test_a_picture_is_made_once() -> None:
    kept, make = ImageCache(), Maker()
    assert kept.get((3, 0), make) is kept.get((3, 0), make)
    assert make.made == 1


def test_each_augmentation_is_a_picture_of_its_own() -> None:
    kept, make = ImageCache(), Maker()
    assert kept.get((3, 0), make) is not kept.get((3, 1), make)


@pytest.mark.parametrize(("mode", "fit"), [("RGB", 3), ("RGBA", 2)])
def test_no_more_is_kept_than_the_limit(mode: str, fit: int) -> None:
    kept, make = ImageCache(limit=999), Maker(mode)
    for _ in range(2):
        for key in range(4):
            kept.get(key, make)
    assert make.made == 4 + (4 - fit)
