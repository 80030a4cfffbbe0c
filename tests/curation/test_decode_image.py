"""Which image files are opened, and for which reason the others aren't."""

import io
import zlib

import pytest
from PIL import Image

from dcclip_cli.curation.candidate import DecodedImage, Drop
from dcclip_cli.curation.decode_image import decode_image, image_suffix


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
    """A PNG file whose header says so, with next to no pixels behind it."""

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


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_an_animation_tells_its_frames(kind: str) -> None:
    colours = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    opened = decode_image(written(colours[0], kind, save_all=True, append_images=colours[1:]))
    assert isinstance(opened, DecodedImage)
    assert opened.frames == 3


def test_a_phone_s_jpeg_with_a_second_picture_inside_is_no_animation() -> None:
    opened = decode_image(written(noise(), "MPO", save_all=True, append_images=[noise()]))
    assert isinstance(opened, DecodedImage)
    assert (opened.format, opened.frames) == ("jpg", 1)


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


@pytest.mark.parametrize("side", [8_001, 60_000])  # 60,000 x 60,000 pixels of 3 bytes would be 10.8 GB
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    assert reason(png(side, side)) == "image-bomb"


def test_a_thread_of_pixels_is_refused_by_its_header() -> None:
    assert reason(png(10_100, 100)) == "image-aspect"


def test_a_wrong_extension_does_not_matter() -> None:
    opened = decode_image(written(noise(), "PNG"))  # whatever the file was called
    assert isinstance(opened, DecodedImage)
    assert opened.format == "png"
