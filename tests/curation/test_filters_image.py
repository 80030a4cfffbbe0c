"""Image files that are decoded, the reasons for the others, and images that filters drop."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dcclip_cli.curation.filters.image import BlankFilter, ImageFilter, decode_image
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop
from tests.images import encode, png_header


def noise(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


def reason(data: bytes) -> str:
    decoded = decode_image(data)
    assert isinstance(decoded, Drop)
    return decoded.reason


def opened(data: bytes) -> DecodedImage:
    decoded = decode_image(data)
    assert isinstance(decoded, DecodedImage)
    return decoded


def test_an_intact_image_is_opened_with_what_its_file_says() -> None:
    data = encode(Image.new("RGB", (40, 50), "blue"))
    decoded = opened(data)
    assert (decoded.image.size, decoded.image.getpixel((0, 0))) == ((40, 50), (0, 0, 255))
    assert (decoded.format, decoded.frames, decoded.file_bytes) == ("png", 1, len(data))


@pytest.mark.parametrize(("kind", "known_as", "frames"), [("WEBP", "webp", 3), ("PNG", "png", 3), ("MPO", "jpg", 1)])
def test_an_animation_has_frames_and_a_second_image_in_a_phones_jpeg_is_none(
    kind: str, known_as: str, frames: int
) -> None:
    decoded = opened(encode(noise(), kind, save_all=True, append_images=[noise(), noise()]))
    assert (decoded.format, decoded.frames) == (known_as, frames)


CUT = encode(noise((256, 256)), "JPEG")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image-format"),
        (encode(noise(), "GIF"), "image-format"),
        (b"", "image-bytes"),
        (b"\xff\xd8\xff" + b"\0" * 90_000, "image-bytes"),
        (b"\xff\xd8\xff" + b"\0" * 900, "image-unreadable"),
        (CUT[: len(CUT) // 2] + b"\xff\xd9", "image-unreadable"),  # cut and closed again
        (png_header(8_001, 8_001), "image-bomb"),
        (png_header(60_000, 60_000), "image-bomb"),  # 10.8 GB as pixels of 3 bytes
        (png_header(10_100, 100), "image-aspect"),
    ],
)
def test_a_file_that_no_recipe_can_keep_has_a_reason(
    data: bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcclip_cli.curation.filters.image.MAX_IMAGE_BYTES", 90_000)
    assert reason(data) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_part_of_a_file_is_unreadable(kind: str, share: float) -> None:
    data = encode(noise(), kind)
    assert reason(data[: int(len(data) * share)]) == "image-unreadable"


def test_a_picture_that_is_grey_at_both_ends_is_no_cut_one() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    grey.paste((255, 0, 0), (16, 16, 48, 48))
    assert opened(encode(grey, "JPEG", quality=95))


PAIR = Pair("k", b"")


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({}, (32, 96), None),
        ({}, (31, 31), "image-small: 31 x 31 pixels, shortest side allowed 32"),
        ({}, (32, 97), "image-aspect: 32 x 97 pixels, ratio allowed 3"),
        ({"min_side": 65}, (64, 64), "image-small: 64 x 64 pixels, shortest side allowed 65"),
        ({"max_aspect": 1.5}, (64, 97), "image-aspect: 64 x 97 pixels, ratio allowed 1.5"),
    ],
)
def test_an_image_is_measured_by_its_sides_and_frames(
    options: dict[str, Any], size: tuple[int, int], expected: str | None
) -> None:
    image = DecodedImage(Image.new("RGB", size), "jpg", 1, 5000)
    drop = ImageFilter(**options).check_pair(PAIR, image)
    assert (f"{drop.reason}: {drop.detail}" if drop else None) == expected
    assert ImageFilter(**options).check_pair(PAIR, replace(image, frames=3)) == Drop("image-animated", "3 frames")


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
    ],
)
def test_a_picture_of_one_colour_and_a_speck_is_blank(image: Image.Image, blank: bool) -> None:
    drop = BlankFilter().check_pair(PAIR, DecodedImage(image, "png", 1, 1000))
    assert (drop.reason if drop else None) == ("image-blank" if blank else None)
