"""Image files that are decoded, and the reasons for the others."""

import io

import pytest
from PIL import Image

from dcclip_cli.curation.decode_image import DecodedImage, decode_image, image_suffix
from dcclip_cli.data.reading import Drop
from tests.curation.conftest import png_header


def written(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


def reason(data: bytes) -> str:
    opened = decode_image(data)
    assert isinstance(opened, Drop)
    return opened.reason


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", None)])
def test_the_first_bytes_tell_the_format(kind: str, suffix: str | None) -> None:
    assert image_suffix(written(noise(), kind)) == suffix


def test_an_intact_image_is_opened_with_what_its_file_says() -> None:
    data = written(Image.new("RGB", (40, 50), "blue"), "PNG")
    opened = decode_image(data)
    assert isinstance(opened, DecodedImage)
    assert (opened.image.size, opened.image.getpixel((0, 0))) == ((40, 50), (0, 0, 255))
    assert (opened.format, opened.frames, opened.file_bytes) == ("png", 1, len(data))


def test_a_picture_is_turned_upright_and_keeps_its_transparency() -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    turned = decode_image(written(noise((60, 40)), "JPEG", exif=exif))
    clear = decode_image(written(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "WEBP"))
    assert isinstance(turned, DecodedImage)
    assert isinstance(clear, DecodedImage)
    assert turned.image.size == (40, 60)
    assert clear.image.mode == "RGBA"


@pytest.mark.parametrize(("kind", "known_as", "frames"), [("WEBP", "webp", 3), ("PNG", "png", 3), ("MPO", "jpg", 1)])
def test_an_animation_has_frames_and_a_second_image_in_a_phones_jpeg_is_none(
    kind: str, known_as: str, frames: int
) -> None:
    opened = decode_image(written(noise(), kind, save_all=True, append_images=[noise(), noise()]))
    assert isinstance(opened, DecodedImage)
    assert (opened.format, opened.frames) == (known_as, frames)


CUT = written(noise((256, 256)), "JPEG")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image-format"),
        (written(noise(), "GIF"), "image-format"),
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
    monkeypatch.setattr("dcclip_cli.curation.decode_image.MAX_IMAGE_BYTES", 90_000)
    assert reason(data) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_part_of_a_file_is_unreadable(kind: str, share: float) -> None:
    data = written(noise(), kind)
    assert reason(data[: int(len(data) * share)]) == "image-unreadable"


def test_a_picture_that_is_grey_at_both_ends_is_no_cut_one() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    grey.paste((255, 0, 0), (16, 16, 48, 48))
    assert isinstance(decode_image(written(grey, "JPEG", quality=95)), DecodedImage)
