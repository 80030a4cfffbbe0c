"""Images that filters drop, by their size, their file and their content."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError

from dcclip_cli.curation.decode_image import DecodedImage
from dcclip_cli.curation.filters.image import BlankFilter, ImageFilter
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop

PAIR = Pair("k", b"")


def picture(size: tuple[int, int] = (64, 64), frames: int = 1) -> DecodedImage:
    return DecodedImage(Image.new("RGB", size), "jpg", frames, 5000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 96), None),
        ((31, 31), "image-small"),
        ((32, 97), "image-aspect"),
        ((97, 32), "image-aspect"),
        ((201, 201), "image-large"),
    ],
)
def test_an_image_is_measured_by_its_sides_and_their_ratio(size: tuple[int, int], expected: str | None) -> None:
    drop = ImageFilter(min_side=32, max_side=200, max_aspect=3).check_pair(PAIR, picture(size))
    assert (drop.reason if drop else None) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Drop("image-animated", "3 frames")),
        ({"animated": True}, None),
        ({"min_bytes": 5001}, Drop("image-bytes", "5,000 bytes, allowed 5,001 to any number")),
        ({"max_bytes": 4999}, Drop("image-bytes", "5,000 bytes, allowed 0 to 4,999")),
        ({"min_bytes": 5000, "max_bytes": 5000, "animated": True}, None),
        ({"formats": ("png", "webp")}, Drop("image-format", "jpg, allowed png, webp")),
    ],
)
def test_a_file_is_measured_by_its_bytes_format_and_frames(options: dict[str, Any], expected: Drop | None) -> None:
    assert ImageFilter(**options).check_pair(PAIR, picture(frames=3)) == expected


@pytest.mark.parametrize("limits", [{"min_side": 10, "max_side": 9}, {"min_bytes": 10, "max_bytes": 9}])
def test_limits_in_the_wrong_order_are_a_mistake(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is less than"):
        ImageFilter(**limits)


def drawn(mode: str, background: str, colour: str, box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new(mode, (240, 240), background)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


NOISE = np.random.default_rng(0).integers(-3, 4, (240, 240, 3))


@pytest.mark.parametrize(
    ("image", "blank"),
    [
        (Image.new("RGB", (240, 240), "white"), True),
        (Image.new("RGB", (2400, 240), "#335577"), True),
        (Image.fromarray((200 + NOISE).astype(np.uint8)), True),
        (drawn("RGB", "white", "black", (100, 100, 109, 109)), True),  # 100 of 57,600 pixels: 0.17 %
        (drawn("RGB", "white", "black", (100, 100, 129, 129)), False),  # 900: 1.6 %
        (drawn("RGB", "white", "#eeeeee", (100, 100, 229, 229)), False),  # large and pale
        (drawn("RGB", "white", "black", (0, 120, 239, 122)), False),  # a thin line
        (Image.new("RGBA", (240, 240), (0, 0, 0, 0)), True),
        (drawn("RGBA", "#00000000", "white", (50, 50, 150, 150)), True),  # white on nothing is seen as white on white
        (drawn("RGBA", "#00000000", "red", (50, 50, 150, 150)), False),
        (Image.linear_gradient("L").convert("RGB"), False),
    ],
)
def test_a_picture_of_one_colour_and_a_speck_is_blank(image: Image.Image, blank: bool) -> None:
    drop = BlankFilter().check_pair(PAIR, DecodedImage(image, "png", 1, 1000))
    assert (drop.reason if drop else None) == ("image-blank" if blank else None)


def test_the_detail_of_a_blank_picture_names_its_colour() -> None:
    assert BlankFilter().check_pair(PAIR, DecodedImage(Image.new("RGB", (64, 64), "#ffcc00"), "png", 1, 100)) == Drop(
        "image-blank", "0.00% of it differs from the colour #ffcc00"
    )
