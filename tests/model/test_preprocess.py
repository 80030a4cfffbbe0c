"""Decoding refuses what is unsafe, and preprocessed numbers are those of open_clip (torchvision)."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.model.preprocess import ImageError, Preprocessing, decode, flatten, matching_preprocessing
from tests.images import encode, png_header


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("kind", "exact"), [("PNG", True), ("WEBP", True), ("JPEG", False)])
def test_png_webp_and_jpeg_are_read_from_bytes_and_files(kind: str, exact: bool, tmp_path: Path) -> None:
    image = noise(30, 20)
    content = encode(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "a").write_bytes(content)
    image_read = decode(content)
    assert (image_read.mode, image_read.size) == ("RGB", (30, 20))
    assert decode(tmp_path / "a").tobytes() == image_read.tobytes()
    assert not exact or image_read.tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_every_kind_of_png_becomes_rgb_or_rgba(mode: str) -> None:
    image_read = decode(encode(noise(8, 8).convert(mode)))
    assert image_read.mode == ("RGBA" if mode.endswith("A") else "RGB")


def test_a_cmyk_jpeg_becomes_rgb_and_a_sixteen_bit_grey_png_keeps_its_shades() -> None:
    red = decode(encode(Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG")).getpixel((4, 4))
    assert isinstance(red, tuple) and red[0] > 250 and max(red[1:]) < 5
    shades = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert np.asarray(decode(encode(Image.fromarray(shades))))[0, :, 0].tolist() == [0, 100, 255]


def test_a_palette_image_keeps_its_transparent_colour() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    image_read = decode(encode(palette, transparency=1))
    assert [image_read.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0, 255), (0, 255, 0, 0)]


def test_an_image_is_turned_upright_by_its_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    image_read = decode(encode(image, exif=exif))
    assert image_read.size == (2, 4)
    assert image_read.getpixel((1, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animation = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(animation).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ((65_000, 65_000), "more than 64,000,000|is not a readable image"),
        ((12_000, 12_000), "more than 64,000,000"),
        ((1, 64_000_000), "has 1 x 64000000 pixels; its aspect ratio is above 100:1"),
        ((101, 1), "has 101 x 1 pixels; its aspect ratio is above 100:1"),
    ],
)
def test_an_image_too_large_or_too_thin_is_refused_before_it_is_decompressed(size: tuple[int, int], what: str) -> None:
    with pytest.raises(DcclipError, match=what):
        decode(png_header(*size))
    assert decode(encode(noise(200, 2))).size == (200, 2)
    assert decode(encode(noise(10, 10)), max_pixels=100).size == (10, 10)
    with pytest.raises(DcclipError, match="has 11 x 10 pixels, more than 100"):
        decode(encode(noise(11, 10)), max_pixels=100)


def test_a_jpeg_with_too_many_pixels_is_decoded_at_an_eighth_if_memory_allows(tmp_path: Path) -> None:
    large = Image.new("L", (16_320, 12_240), 90)  # 200 megapixels, over Pillow's own limit too
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(large, "JPEG", exif=exif)
    (tmp_path / "大.jpg").write_bytes(content)
    for source in (content, tmp_path / "大.jpg"):
        image_read = decode(source)
        assert image_read.size == (1_530, 2_040) and image_read.getpixel((9, 9)) == (90, 90, 90)
    with pytest.raises(DcclipError, match="more than 16,000,000"):
        decode(content, max_pixels=16_000_000)  # a server decodes it by itself
    with pytest.raises(DcclipError, match="has 16320 x 12240 pixels, more than 128,000,000"):
        decode(encode(large, "JPEG", progressive=True))


WHOLE = {kind: encode(noise(40, 40), kind) for kind in ("PNG", "JPEG", "WEBP")}
UNREADABLE: dict[str, bytes] = {
    **{
        f"{share:.0%} of a {kind}": full_image[: int(len(full_image) * share)]
        for kind, full_image in WHOLE.items()
        for share in (0.02, 0.9)
    },
    **{kind: encode(noise(16, 16), kind) for kind in ("GIF", "TIFF", "ICO")},
    "nothing": b"",
    "text": "这不是图片".encode(),
    "no pixels": png_header(0, 0),
}


@pytest.mark.parametrize("content", UNREADABLE)
def test_what_is_no_whole_jpeg_png_or_webp_is_refused(content: str) -> None:
    with pytest.raises(DcclipError, match="is not a readable image") as raised:
        decode(UNREADABLE[content])
    assert "JPEG" in raised.value.hint


def test_what_the_system_does_not_read_is_not_called_a_broken_image(tmp_path: Path) -> None:
    (folder := tmp_path / "夏 天.jpg").mkdir()  # as root reads all files, whatever their permissions
    with pytest.raises(DcclipError, match=r"夏 天\.jpg cannot be read: ") as raised:
        decode(folder)
    assert raised.value.hint.startswith("check the permissions") and not isinstance(raised.value, ImageError)


def test_transparency_shows_the_colour_behind_it() -> None:
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert flatten(half).getpixel((0, 0)) == (255, 127, 127)
    assert flatten(half, (0, 0, 255)).getpixel((0, 0)) == (128, 0, 127)


SIZES = [(32, 32), (33, 47), (100, 31), (31, 100), (7, 5), (224, 225), (640, 480)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@pytest.mark.parametrize("side", [32, 63])
def test_the_numbers_equal_those_of_open_clip_to_the_bit(interpolation: str, resize_mode: str, side: int) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    own_processor = Preprocessing(
        size=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.2), interpolation=interpolation, resize_mode=resize_mode
    )
    expected = image_transform_v2(PreprocessCfg(**own_processor.to_config()), is_train=False)
    for width, height in SIZES:
        image = noise(width, height, seed=width)
        assert own_processor(image).dtype == np.float32
        assert np.array_equal(own_processor(image), expected(image).numpy()), (width, height)


def test_the_configuration_survives_open_clips_form() -> None:
    steps = Preprocessing(size=96, mean=(0.1, 0.2, 0.3), std=(1, 1, 1), interpolation="bilinear", resize_mode="squash")
    assert Preprocessing.from_config(steps.to_config()) == steps
    assert "crop" not in steps.to_config()  # which open_clip does not know
    floors = Preprocessing(size=96, crop="floor")
    assert Preprocessing.from_config(floors.to_config()) == floors
    assert Preprocessing.from_config({"size": [64, 64], "mean": [0.5, 0.5, 0.5]}).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"size": [32, 64]}, "size (32, 64) is not supported: images must be square"),
        ({"size": 0}, "size must be an integer from 1 to 4,096 (got 0)"),
        ({"mean": [0.5, "0.5", 0.5]}, "mean must be three numbers from -10000 to 10000 (got [0.5, '0.5', 0.5])"),
        ({"std": [0.5, 0, 0.5]}, "std must be three numbers from 0.0001 to 10000 (got [0.5, 0, 0.5])"),
        ({"interpolation": "lanczos9"}, "interpolation must be bicubic or bilinear or nearest (got 'lanczos9')"),
        ({"resize_mode": "longest"}, "resize_mode must be shortest or squash (got 'longest')"),
    ],
)
def test_an_unsupported_configuration_is_refused_by_its_key(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(what)):
        Preprocessing.from_config(config)


# ---- the preprocessing of other libraries, found exactly, whichever way it crops

ODD = [(227, 224), (224, 227), (301, 201), (97, 333), (63, 64), (641, 479), (1, 1), (225, 226)]


def processor(kind: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(**settings)


def values(own: Any) -> Any:
    return lambda image: np.asarray(own(images=image, return_tensors="np")["pixel_values"][0], np.float32)


@pytest.mark.parametrize(
    ("kind", "settings", "crop"),
    [
        ("CLIPImageProcessorPil", {}, "floor"),
        ("CLIPImageProcessorPil", {"resample": 2, "size": {"shortest_edge": 224}}, "floor"),
        ("CLIPImageProcessorPil", {"size": {"height": 224, "width": 224}}, "round"),  # MetaCLIP 2's
        ("ChineseCLIPImageProcessorPil", {"do_center_crop": False, "size": {"height": 224, "width": 224}}, "round"),
        ("SiglipImageProcessorPil", {"size": {"height": 224, "width": 224}}, "round"),
    ],
)
def test_a_transformers_processor_at_224_is_matched_on_odd_sizes(kind: str, settings: Any, crop: str) -> None:
    own_processor = processor(kind, **settings)
    matched = matching_preprocessing("teacher", values(own_processor), own_processor)
    assert (matched.size, matched.crop) == (224, crop)
    for size in ODD:
        image = noise(*size)
        np.testing.assert_allclose(matched(image), values(own_processor)(image), rtol=0, atol=1e-5, err_msg=str(size))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"size": {"shortest_edge": 256}}, "it resizes to 256 and crops to 224"),
        ({"size": {"height": 224, "width": 192}, "do_center_crop": False}, "its images are not square"),
        ({"do_rescale": False}, "its output does not match its settings"),
    ],
)
def test_another_kind_of_preprocessing_is_refused_with_the_reason(settings: dict[str, Any], reason: str) -> None:
    own_processor = processor("CLIPImageProcessorPil", **settings)
    with pytest.raises(DcclipError, match=reason):
        matching_preprocessing("teacher", values(own_processor), own_processor)
