"""Random changes of images: replayable, and what each of them does."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.data.collator import generator
from dcclip_cli.data.options import Augment

ALL = Augment(
    background="random", crop=0.6, scale=(0.7, 1.2), rotate=20, translate=0.1, colour=0.4, blur=1, grey=0.3, flip=True
)


def quarters(size: int = 40) -> Image.Image:
    """Red, green / blue, black."""
    image = Image.new("RGB", (size, size), "red")
    half = size // 2
    image.paste("lime", (half, 0, size, half))
    image.paste("blue", (0, half, half, size))
    image.paste("black", (half, half, size, size))
    return image


def disc() -> Image.Image:
    """A red square of 20 in the middle of 40 transparent pixels."""
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 10, 30, 30))
    return image


class Fixed:
    """Random numbers that are all the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, count: int) -> np.ndarray:
        return np.full(count, self.value)


def fixed(augment: Augment, image: Image.Image, value: float) -> Image.Image:
    return augment(image, Fixed(value))  # type: ignore[arg-type]


def test_the_defaults_only_put_transparency_on_white() -> None:
    assert Augment()(quarters(), generator(0, 0, 0)).tobytes() == quarters().tobytes()
    flat = Augment()(disc(), generator(0, 0, 0))
    assert flat.mode == "RGB"
    assert (flat.getpixel((0, 0)), flat.getpixel((20, 20))) == ((255, 255, 255), (255, 0, 0))


def test_the_same_seed_sample_and_augmentation_give_the_same_image() -> None:
    first, again = (ALL(disc(), generator(3, 1234, 5)).tobytes() for _ in range(2))
    assert first == again


def test_seeds_samples_and_augmentations_never_share_their_numbers() -> None:
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


def test_a_crop_keeps_the_fraction_of_the_area_that_was_drawn() -> None:
    # sides: sqrt(0.25 + 0.75 * draw) * 40, at draw 0 a half; the corner is draw * (40 - side)
    cropped = fixed(Augment(crop=0.25), quarters(), 0.0)
    assert cropped.size == (20, 20)
    assert cropped.getcolors() == [(400, (255, 0, 0))]
    assert fixed(Augment(crop=0.25), quarters(), 1.0).size == (40, 40)


def test_a_zoom_below_one_shrinks_the_image_into_its_background() -> None:
    small = fixed(Augment(scale=(0.5, 0.5)), quarters(), 0.5)
    assert small.size == (40, 40)
    assert small.getpixel((5, 5)) == (255, 255, 255)
    assert [small.getpixel(at) for at in [(14, 14), (25, 14), (14, 25), (25, 25)]] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (0, 0, 0),
    ]


def test_a_shift_moves_by_its_share_of_the_side() -> None:
    # draw 1 is the largest shift, right and down: 0.25 * 40 = 10 pixels
    moved = fixed(Augment(translate=0.25), quarters(), 1.0)
    assert moved.getpixel((4, 20)) == (255, 255, 255)
    assert moved.getpixel((15, 15)) == (255, 0, 0)
    assert moved.getpixel((35, 35)) == (0, 0, 0)


def test_a_rotation_by_ninety_degrees_turns_the_quarters() -> None:
    turned = fixed(Augment(rotate=90), quarters(), 1.0)
    corners = [turned.getpixel(at) for at in [(10, 10), (30, 10), (10, 30), (30, 30)]]
    expected = quarters().rotate(-90)
    assert corners == [expected.getpixel(at) for at in [(10, 10), (30, 10), (10, 30), (30, 30)]]


@pytest.mark.parametrize(("draw", "flipped"), [(0.4, True), (0.6, False)])
def test_flip_mirrors_half_of_the_images(draw: float, flipped: bool) -> None:
    image = fixed(Augment(flip=True), quarters(), draw)
    assert (image.getpixel((0, 0)) == (0, 255, 0)) == flipped


def test_grey_drops_the_colours() -> None:
    red = fixed(Augment(grey=1), quarters(), 0.5).getpixel((0, 0))
    assert red == (76, 76, 76)  # ITU-R 601: 0.299 * 255


def test_brightness_is_changed_by_at_most_the_given_share() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    assert fixed(Augment(colour=0.5), grey, 0.0).getpixel((0, 0)) == (50, 50, 50)
    assert fixed(Augment(colour=0.5), grey, 1.0).getpixel((0, 0)) == (150, 150, 150)


def test_blur_softens_an_edge() -> None:
    blurred = np.asarray(fixed(Augment(blur=4), quarters(), 0.4), dtype=int)
    edge = blurred[5, 18:22, 0]  # red falls to 0 to the right
    assert list(edge) == sorted(edge, reverse=True)
    assert 0 < edge[1] < 255


def test_every_change_at_once_keeps_the_image_rgb_and_whole_numbers() -> None:
    image = ALL(quarters(), generator(0, 7, 3))
    assert image.mode == "RGB"
    assert min(image.size) >= 1
