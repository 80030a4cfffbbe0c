"""Images that show the same (slightly altered photographs) and those that do not (clock faces, discs)."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from dcclip_cli.curation.dedup.near_duplicates import perceptual_hashes, similar, thumbnail
from dcclip_cli.curation.filters.image import DecodedImage
from tests.images import encode


def scene(seed: int) -> Image.Image:
    """An image of 256 px with soft and hard shapes, as in a photograph."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (6, 6, 3), np.uint8))
    image = small.resize((256, 256), Image.Resampling.BICUBIC)
    for _ in range(8):
        x, y, width, height = random.integers(0, 256, 4)
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        ImageDraw.Draw(image).ellipse((x, y, x + width / 3, y + height / 3), fill=colour)
    return image


def clock(hour: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((3, 3, 60, 60), fill="#eeeeee", outline="#444444", width=4)
    angle = 2 * np.pi * hour / 12
    draw.line((32, 32, 32, 12), fill="black", width=3)
    draw.line((32, 32, 32 + 15 * np.sin(angle), 32 - 15 * np.cos(angle)), fill="black", width=4)
    return image


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((6, 6, 250, 250))  # 2.5 % on each side, nearly


def marked(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).text((150, 230), "© example.com", fill="red")
    return image


def small(image: Image.Image) -> np.ndarray:
    return thumbnail(DecodedImage(image, "png", 1, 0))


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(similar(small(one)[None], small(other)[None])[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.open(io.BytesIO(encode(image, "JPEG", quality=40))).convert("RGB"),
        lambda image: image.resize((128, 128)),
        cropped,
        marked,
        lambda image: ImageOps.expand(image, 8, "black"),
    ],
    ids=["compressed", "halved", "cropped", "marked", "framed"],
)
def test_a_slightly_altered_image_shows_the_same(change: Callable[[Image.Image], Image.Image]) -> None:
    assert all(same(scene(seed), change(scene(seed))) for seed in range(5))


@pytest.mark.parametrize("draw", [scene, clock])
def test_different_scenes_and_clock_faces_do_not_show_the_same(draw: Callable[[int], Image.Image]) -> None:
    assert not any(same(draw(one), draw(other)) for one in range(8) for other in range(one))


def disc(colour: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((6, 8, 58, 50), fill=colour)
    return image


def test_discs_differ_by_their_colour_though_their_hashes_are_near() -> None:
    red, blue = disc("#dd2e44"), disc("#5dadec")
    assert (hashes(red)[0] ^ hashes(blue)[0]).bit_count() <= 10
    assert not same(red, blue)


def document(corners: int) -> Image.Image:
    """An icon of a document with a white polygon on it."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((28, 8, 100, 120), fill="#2f88ff", outline="black", width=8)
    draw.regular_polygon((64, 64, 11), corners, rotation=180, fill="white")
    return image


def test_another_sign_in_the_middle_is_another_image_and_a_logo_in_the_corner_is_not() -> None:
    with_logo = document(3)
    ImageDraw.Draw(with_logo).ellipse((112, 112, 124, 124), fill="#e61e1e")
    assert same(document(3), with_logo)
    assert not any(same(document(3), document(corners)) for corners in (5, 6, 8))


def hashes(image: Image.Image) -> list[int]:
    [four] = perceptual_hashes(small(image)[None]).tolist()
    return list(four)
