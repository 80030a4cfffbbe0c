"""Which pictures show the same: photographs changed a little do, clock faces and hearts do not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dcclip_cli.curation.dedup.image_similarity import SIDE, differences, perceptual_hashes, similar, thumbnail


def scene(seed: int, side: int = 256) -> Image.Image:
    """A picture with soft and hard shapes, as a photograph has them."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (6, 6, 3), np.uint8))
    image = small.resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y, width, height = random.integers(0, side, 4)
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        draw.ellipse((x, y, x + width / 3, y + height / 3), fill=colour)
    return image


def clock(hour: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((3, 3, 60, 60), fill="#eeeeee", outline="#444444", width=4)
    angle = 2 * np.pi * hour / 12
    draw.line((32, 32, 32, 12), fill="black", width=3)
    draw.line((32, 32, 32 + 15 * np.sin(angle), 32 - 15 * np.cos(angle)), fill="black", width=4)
    return image


def heart(colour: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((6, 8, 34, 36), fill=colour)
    draw.ellipse((30, 8, 58, 36), fill=colour)
    draw.polygon([(9, 30), (55, 30), (32, 58)], fill=colour)
    return image


def compressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=40)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((6, 6, 250, 250))  # 2.5 % on each side, nearly


def marked(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((150, 230), "© example.com", fill="red")
    return image


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(similar(thumbnail(one)[None], thumbnail(other)[None])[0])


def apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def framed(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).rectangle((0, 0, 255, 255), outline="black", width=4)
    return image


@pytest.mark.parametrize("change", [compressed, halved, cropped, marked])
def test_a_picture_changed_a_little_shows_the_same(change: object) -> None:
    for seed in range(5):
        assert callable(change)
        assert same(scene(seed), change(scene(seed)))


def test_a_picture_whose_frame_was_cropped_off_shows_the_same() -> None:
    for seed in range(5):
        picture = framed(scene(seed))
        assert same(picture, picture.crop((10, 8, 246, 248)))


def test_different_scenes_do_not_show_the_same() -> None:
    assert not any(same(scene(one), scene(other)) for one in range(5) for other in range(one))


def test_clock_faces_differ_by_their_hands() -> None:
    assert not any(same(clock(one), clock(other)) for one in range(12) for other in range(one))


def test_hearts_differ_by_their_colour_though_their_hashes_are_near() -> None:
    red, blue = heart("#dd2e44"), heart("#5dadec")
    assert apart(perceptual_hashes(thumbnail(red))[0], perceptual_hashes(thumbnail(blue))[0]) <= 10
    assert not same(red, blue)


def test_the_second_hash_is_that_of_a_picture_cropped_a_little() -> None:
    for seed in range(5):
        whole, crop = perceptual_hashes(thumbnail(scene(seed))), perceptual_hashes(thumbnail(cropped(scene(seed))))
        assert apart(whole[1], crop[0]) <= 2


def test_the_hash_of_the_middle_does_not_see_a_mark_in_the_corner() -> None:
    for seed in range(5):
        assert (
            apart(perceptual_hashes(thumbnail(scene(seed)))[3], perceptual_hashes(thumbnail(marked(scene(seed))))[3])
            == 0
        )


def test_hashes_have_64_bits_of_which_half_are_set() -> None:
    assert [hash_.bit_count() for hash_ in perceptual_hashes(thumbnail(scene(0)))] == [32, 32, 32, 32]


def test_equal_thumbnails_differ_by_nothing() -> None:
    thumbs = np.stack([thumbnail(scene(0)), thumbnail(heart("red"))])
    assert np.abs(differences(thumbs, thumbs)).max() < 1e-3


def test_a_flat_difference_of_ten_levels_is_a_mean_of_ten() -> None:
    grey = np.full((1, SIDE, SIDE, 3), 100, np.uint8)
    mean, worst, detail = differences(grey, grey + 10)[0]
    assert (round(float(mean), 3), round(float(worst), 3), round(float(detail), 3)) == (10, 10, 0)
