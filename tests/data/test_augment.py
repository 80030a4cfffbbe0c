"""Random changes of images: replayable, and what each of them does."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.data.collator import generator
from dcclip_cli.data.options import Augment

ALL = Augment(
    background="random", crop=0.6, scale=(0.7, 1.2), rotate=20, translate=0.1, colour=0.4, blur=1, grey=0.3, flip=True
)
Colour = tuple[int, int, int]
RED, LIME, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


def quarters() -> Image.Image:
    """Red, green / blue, black, 20 pixels each."""
    image = Image.new("RGB", (40, 40), RED)
    image.paste(LIME, (20, 0, 40, 20))
    image.paste(BLUE, (0, 20, 20, 40))
    image.paste(BLACK, (20, 20, 40, 40))
    return image


def disc() -> Image.Image:
    """A red square of 20 in the middle of 40 transparent pixels."""
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 10, 30, 30))
    return image


def fixed(augment: Augment, image: Image.Image, value: float) -> Image.Image:
    """Augmented with random numbers that are all the same."""
    return augment(image, SimpleNamespace(random=lambda count: np.full(count, value)))  # type: ignore[arg-type]


def test_the_defaults_only_put_transparency_on_white() -> None:
    assert Augment()(quarters(), generator(0, 0, 0)).tobytes() == quarters().tobytes()
    flat = Augment()(disc(), generator(0, 0, 0))
    assert flat.mode == "RGB"
    assert (flat.getpixel((0, 0)), flat.getpixel((20, 20))) == ((255, 255, 255), (255, 0, 0))


def test_the_same_seed_sample_and_augmentation_give_the_same_image_and_share_their_numbers_with_no_other() -> None:
    first, again = (ALL(disc(), generator(3, 1234, 5)) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.mode == "RGB" and min(first.size) >= 1
    numbers = [generator(*key).random() for key in product(range(2), range(50), range(50))]
    assert len(set(numbers)) == 5000


def test_a_random_background_shows_only_where_the_image_is_transparent() -> None:
    corners = set()
    for augmentation in range(20):
        image = Augment(background="random")(disc(), generator(0, 0, augmentation))
        assert image.getpixel((20, 20)) == (255, 0, 0)
        corners.add(image.getpixel((0, 0)))
    assert (255, 255, 255) in corners  # a quarter of the time
    assert len(corners) > 10


@pytest.mark.parametrize(
    ("augment", "draw", "side", "expected"),
    [
        # The side of a crop is sqrt(0.25 + 0.75 * draw) * 40, its corner at draw * (40 - side).
        (Augment(crop=0.25), 0.0, 20, {(0, 0): RED, (19, 0): RED, (0, 19): RED, (19, 19): RED}),
        (Augment(crop=0.25), 1.0, 40, {(0, 0): RED, (39, 39): BLACK}),
        # A zoom below one shrinks the image into its background.
        (Augment(scale=(0.5, 0.5)), 0.5, 40, {(5, 5): WHITE, (14, 14): RED, (25, 14): LIME, (14, 25): BLUE}),
        # The largest shift, right and down, is 0.25 * 40 = 10 pixels, the largest rotation 90 degrees clockwise.
        (Augment(translate=0.25), 1.0, 40, {(4, 20): WHITE, (15, 15): RED, (35, 35): BLACK}),
        (Augment(rotate=90), 1.0, 40, {(10, 10): BLUE, (30, 10): RED, (10, 30): BLACK, (30, 30): LIME}),
        (Augment(flip=True), 0.4, 40, {(0, 0): LIME}),  # half of the images
        (Augment(flip=True), 0.6, 40, {(0, 0): RED}),
        (Augment(grey=1), 0.5, 40, {(0, 0): (76, 76, 76)}),  # ITU-R 601: 0.299 * 255
    ],
)
def test_a_change_moves_or_recolours_the_quarters_as_far_as_was_drawn(
    augment: Augment, draw: float, side: int, expected: dict[tuple[int, int], Colour]
) -> None:
    image = fixed(augment, quarters(), draw)
    assert image.size == (side, side)
    assert {place: image.getpixel(place) for place in expected} == expected


def test_blur_softens_an_edge() -> None:
    blurred = np.asarray(fixed(Augment(blur=4), quarters(), 0.4), dtype=int)
    edge = blurred[5, 18:22, 0]  # red falls to 0 to the right
    assert list(edge) == sorted(edge, reverse=True)
    assert 0 < edge[1] < 255
