"""Pixels of training images: as near to Pillow's as stated, and normalized bit for bit as Preprocessing does."""

import io
from collections.abc import Iterable
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dcclip_cli.data.collator import generator
from dcclip_cli.data.options import Augment
from dcclip_cli.data.pixels import Uint8Pixels, normalized, stacked
from dcclip_cli.model.preprocess import Preprocessing, decode

LARGE = ((640, 480), (256, 256), (512, 512), (1000, 750))
OTHERS = ((97, 333), (1, 7), (100, 400), (200, 280), (63, 64), (40, 30), (128, 128))  # tall or small


def photo(width: int, height: int) -> Image.Image:
    """Soft colours with fine noise on them."""
    random = np.random.default_rng(width)
    coarse = random.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray((smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=90, **options)
    return written.getvalue()


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(224),
        Preprocessing(64, interpolation="bilinear", resize_mode="squash"),
        Preprocessing(224, interpolation="bilinear", crop="floor"),
    ],
)
def test_torch_resizes_large_images_to_pillows_levels_but_for_one_in_200_and_others_to_two_levels(
    preprocessing: Preprocessing,
) -> None:
    assert_near(preprocessing, LARGE, levels=1, fraction=0.005)
    assert_near(preprocessing, OTHERS, levels=2, fraction=0.25)


def assert_near(preprocessing: Preprocessing, sizes: Iterable[tuple[int, int]], levels: int, fraction: float) -> None:
    differences = []
    for image in (photo(*size) for size in sizes):
        expected = np.asarray(preprocessing.resize(image)).transpose(2, 0, 1)
        differences.append(np.abs(Uint8Pixels(preprocessing)(image).astype(int) - expected))
    assert np.max(differences) <= levels
    assert (np.stack(differences) > 0).mean() <= fraction


def test_other_interpolations_and_images_of_the_right_size_are_pillows() -> None:
    nearest = Preprocessing(32, interpolation="nearest")
    assert np.array_equal(
        Uint8Pixels(nearest)(photo(80, 60)).transpose(1, 2, 0), np.asarray(nearest.resize(photo(80, 60)))
    )
    image = photo(32, 32)
    assert np.array_equal(Uint8Pixels(Preprocessing(32))(image).transpose(1, 2, 0), np.asarray(image))


def test_pixels_are_normalized_on_the_device_bit_for_bit_as_by_preprocessing() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 256))  # every level, in every channel
    image = Image.fromarray(np.stack([levels, levels.T, 255 - levels], 2))
    preprocessing = Preprocessing(256)
    batch = stacked([Uint8Pixels(preprocessing)(image)] * 2)
    assert batch.dtype == torch.uint8 and batch.is_contiguous(memory_format=torch.channels_last)
    pixels = normalized(batch, preprocessing)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(pixels[1].numpy(), preprocessing(image))
    floats = torch.rand(1, 3, 2, 2)
    assert normalized(floats, None) is floats  # of a library's own preprocessing


@pytest.mark.parametrize(
    ("size", "draft", "expected"),
    [
        ((1024, 768), 0, (1024, 768)),
        ((1024, 768), 384, (512, 384)),
        ((1024, 768), 385, (1024, 768)),  # 384 pixels would be too few
        ((1600, 1200), 150, (200, 150)),  # an eighth is the least
        ((3200, 2400), 150, (400, 300)),
        ((100, 80), 384, (100, 80)),
    ],
)
def test_a_jpeg_is_decoded_at_a_part_of_its_size_while_enough_pixels_are_left(
    size: tuple[int, int], draft: int, expected: tuple[int, int]
) -> None:
    image = Image.new("RGB", size)
    assert decode(jpeg(image), draft=draft).size == expected
    rotated = image.getexif()
    rotated[274] = 6  # a quarter turn
    assert decode(jpeg(image, exif=rotated), draft=draft).size == expected[::-1]
    written = io.BytesIO()
    image.save(written, "PNG")
    assert decode(written.getvalue(), draft=draft).size == size


ALL = Augment(
    background="random", crop=0.6, scale=(0.7, 1.2), rotate=20, translate=0.1, colour=0.4, blur=1, grey=0.3, flip=True
)
Colour = tuple[int, int, int]
RED = (255, 0, 0)
LIME = (0, 255, 0)
BLUE = (0, 0, 255)
BLACK = (0, 0, 0)
WHITE = (255, 255, 255)


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
