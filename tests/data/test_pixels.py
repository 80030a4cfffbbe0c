"""Pixels of training images: as near to Pillow's as stated, and normalized bit for bit as Preprocessing does."""

import io
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from PIL import Image

from dcclip_cli.data.options import Augment
from dcclip_cli.data.pixels import ImageCache, Uint8Pixels, draft_side, normalized, stacked
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
    found = normalized(batch, preprocessing)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(found[1].numpy(), preprocessing(image))
    floats = torch.rand(1, 3, 2, 2)
    assert normalized(floats, None) is floats  # of a library's own preprocessing


# ---- reduced decoding


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
    image = photo(*size)
    assert decode(jpeg(image), draft=draft).size == expected
    rotated = image.getexif()
    rotated[274] = 6  # a quarter turn
    assert decode(jpeg(image, exif=rotated), draft=draft).size == expected[::-1]
    written = io.BytesIO()
    image.save(written, "PNG")
    assert decode(written.getvalue(), draft=draft).size == size


def test_what_is_left_of_an_image_has_twice_the_pixels_of_the_largest_target() -> None:
    small, large = Uint8Pixels(Preprocessing(64)), Uint8Pixels(Preprocessing(224))
    assert draft_side(Augment(), [small]) == 128
    assert draft_side(Augment(), [small, large]) == 448
    assert draft_side(Augment(crop=0.25), [large]) == 896  # the smallest crop has half of the side
    assert draft_side(Augment(scale=(0.5, 2)), [large]) == 896
    assert draft_side(Augment(blur=1), [large]) == 0
    assert draft_side(Augment(), [small, Preprocessing(64)]) == 0  # whatever it does is not known


# ---- the cache


def test_nothing_is_kept_of_data_that_is_much_larger_than_the_cache() -> None:
    made = []

    def make() -> tuple[np.ndarray, ...]:
        made.append(1)
        return (np.zeros(100, np.uint8),)

    cache = ImageCache(limit=1000)
    for _ in range(2):
        cache.get("of 100", make, count=100)  # a tenth of them fits
        cache.get("of 101", make, count=101)
    assert len(made) == 3
