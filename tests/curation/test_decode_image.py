"""Image files that are decoded, and the reasons for the others."""

import pytest
from PIL import Image

from dcclip_cli.curation.filters.image import DecodedImage, decode_image
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
    found = opened(data)
    assert (found.image.size, found.image.getpixel((0, 0))) == ((40, 50), (0, 0, 255))
    assert (found.format, found.frames, found.file_bytes) == ("png", 1, len(data))


@pytest.mark.parametrize(("kind", "known_as", "frames"), [("WEBP", "webp", 3), ("PNG", "png", 3), ("MPO", "jpg", 1)])
def test_an_animation_has_frames_and_a_second_image_in_a_phones_jpeg_is_none(
    kind: str, known_as: str, frames: int
) -> None:
    found = opened(encode(noise(), kind, save_all=True, append_images=[noise(), noise()]))
    assert (found.format, found.frames) == (known_as, frames)


CUT = encode(noise((256, 256)), "JPEG")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image-format"),
        (encode(noise(), "GIF"), "image-format"),
        (b"\0" * 100, "image-format"),
        (b"<html>404", "image-format"),
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
