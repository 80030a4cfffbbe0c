"""Image files that are decoded, and the reasons for the others."""

import io
import zlib

import pytest
from PIL import Image

from dcclip_cli.curation.decode_image import DecodedImage, decode_image, image_suffix
from dcclip_cli.data.reading import Drop


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


def png(width: int, height: int) -> bytes:
    """A PNG file whose header declares this size, with almost no pixel data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


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


def test_what_is_no_jpeg_png_or_webp_is_told_by_its_format() -> None:
    for content in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", written(noise(), "GIF"), b"\0" * 100, b"<html>404"):
        assert reason(content) == "image-format"


def test_no_bytes_and_too_many_are_told_apart_from_broken_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcclip_cli.curation.decode_image.MAX_IMAGE_BYTES", 1000)
    assert reason(b"") == "image-bytes"
    assert reason(b"\xff\xd8\xff" + b"\0" * 998) == "image-bytes"
    assert reason(b"\xff\xd8\xff" + b"\0" * 900) == "image-unreadable"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_part_of_a_file_is_unreadable(kind: str, share: float) -> None:
    data = written(noise(), kind)
    assert reason(data[: int(len(data) * share)]) == "image-unreadable"


def test_a_jpeg_that_was_cut_and_closed_again_is_unreadable() -> None:
    data = written(noise((256, 256)), "JPEG")
    assert reason(data[: len(data) // 2] + b"\xff\xd9") == "image-unreadable"


def test_a_picture_that_is_grey_at_both_ends_is_no_cut_one() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    grey.paste((255, 0, 0), (16, 16, 48, 48))
    assert isinstance(decode_image(written(grey, "JPEG", quality=95)), DecodedImage)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8_001, 8_001), "image-bomb"),
        ((60_000, 60_000), "image-bomb"),  # 10.8 GB as pixels of 3 bytes
        ((10_100, 100), "image-aspect"),
    ],
)
def test_a_decompression_bomb_and_a_thread_of_pixels_are_refused_by_their_header(
    size: tuple[int, int], expected: str
) -> None:
    assert reason(png(*size)) == expected
