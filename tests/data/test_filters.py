"""What the filters drop, and for which reason."""

import io
import unicodedata
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from dcclip_cli.data.filters import (
    Drop,
    Duplicates,
    ImageFilter,
    LanguageFilter,
    LengthFilter,
    clean,
    image_suffix,
    language_of,
    open_image,
    unfit,
)
from dcclip_cli.data.pair import Language, Pair

PAIR = Pair("k", b"")


def reason(drop: Drop | None) -> str | None:
    return drop.reason if drop else None


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("一只猫", "zh"),
        ("苹果 iPhone 15 手机壳", "zh"),
        ("臺北夜市", "zh"),
        ("人山人海，好热闹！", "zh"),
        ("𠮷野家", "zh"),
        ("BMW M3 2015", "en"),
        ("a cat", "en"),
        ("Ｔｏｋｙｏ at night", "en"),
        ("猫がベッドで寝ている", "other"),
        ("고양이", "other"),
        ("красная машина", "other"),
        ("un café à Paris", "other"),
        ("2015 😀!", "other"),
        ("", "other"),
    ],
)
def test_the_script_tells_the_language(caption: str, language: str) -> None:
    assert language_of(caption) == language


@given(st.text())
def test_composing_characters_does_not_change_the_language(caption: str) -> None:
    assert language_of(unicodedata.normalize("NFD", caption)) == language_of(caption)


@pytest.mark.parametrize(("caption", "language"), [("a cat", "zh"), ("一只猫", "en"), ("猫がいる", "zh")])
def test_a_caption_in_the_wrong_script_is_dropped(caption: str, language: Language) -> None:
    assert reason(LanguageFilter().caption_reason(caption, language)) == "caption-language"


def test_a_caption_in_its_own_script_stays() -> None:
    assert LanguageFilter().caption_reason("一只 T恤", "zh") is None
    assert LanguageFilter().caption_reason("a T-shirt, 棉 not said", "en") == Drop(
        "caption-language", "said to be en, looks like zh"
    )
    assert LanguageFilter().caption_reason("a T-shirt", "en") is None


@pytest.mark.parametrize(
    ("caption", "language", "expected"),
    [
        ("猫", "zh", "caption-short"),
        ("黑 猫", "zh", None),  # two characters: the space doesn't count
        ("一只黑猫", "zh", None),
        ("一只大黑猫", "zh", "caption-long"),
        ("cat", "en", "caption-short"),
        ("black cat", "en", None),
        ("a very black cat", "en", "caption-long"),
    ],
)
def test_chinese_is_counted_in_characters_and_english_in_words(
    caption: str, language: Language, expected: str | None
) -> None:
    assert reason(LengthFilter(zh=(2, 4), en=(2, 3)).caption_reason(caption, language)) == expected


def test_the_fewest_must_not_be_more_than_the_most() -> None:
    with pytest.raises(ValidationError, match="the fewest come first"):
        LengthFilter(zh=(5, 4))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 96), None), ((31, 31), "image-small"), ((32, 97), "image-aspect"), ((97, 32), "image-aspect")],
)
def test_a_picture_is_measured_by_its_short_side_and_its_ratio(size: tuple[int, int], expected: str | None) -> None:
    rule = ImageFilter(min_side=32, max_aspect=3)
    assert reason(rule.reason(PAIR, Image.new("RGB", size))) == expected


def test_cleaning_composes_letters_and_keeps_full_width_punctuation() -> None:
    assert clean("\u3000蝴蝶，张开了翅膀！\n") == "蝴蝶，张开了翅膀！"
    assert clean(" cafe\u0301 ") == "caf\u00e9"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("一只猫\0", "caption-control"),
        ("a \x1b[31mred cat", "caption-control"),
        ("half a pair \ud83d", "caption-control"),
        ("猫" * 10_001, "caption-long"),
        ("猫" * 10_000, None),
        ("two\nlines", None),
        ("一只猫😀", None),
    ],
)
def test_control_characters_and_documents_are_no_captions(caption: str, expected: str | None) -> None:
    assert reason(unfit(caption)) == expected


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", None)])
def test_the_first_bytes_tell_the_format(picture: Callable[..., bytes], kind: str, suffix: str | None) -> None:
    assert image_suffix(picture(kind=kind)) == suffix


def test_an_intact_image_is_opened(picture: Callable[..., bytes]) -> None:
    image = open_image(picture("blue", (40, 50)))
    assert isinstance(image, Image.Image)
    assert (image.size, image.getpixel((0, 0))) == ((40, 50), (0, 0, 255))


def test_what_is_no_jpeg_png_or_webp_is_told_by_its_format(picture: Callable[..., bytes]) -> None:
    for content in (b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", picture(kind="GIF"), b"\0" * 100):
        opened = open_image(content)
        assert isinstance(opened, Drop)
        assert opened.reason == "image-format"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_half_a_file_is_unreadable(kind: str) -> None:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(stream, kind)
    opened = open_image(stream.getvalue()[: len(stream.getvalue()) // 2])
    assert isinstance(opened, Drop)
    assert opened.reason == "image-unreadable"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"  # 60,000 x 60,000 pixels of 3 bytes: 10.8 GB
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )
    opened = open_image(bomb)
    assert isinstance(opened, Drop)
    assert opened.reason == "image-unreadable"


def test_only_the_second_of_two_equal_images_is_a_duplicate() -> None:
    seen = Duplicates()
    assert seen.reason(Pair("0", b"one", zh=("猫",))) is None
    assert seen.reason(Pair("1", b"two", zh=("猫",))) is None
    assert seen.reason(Pair("2", b"one", en=("cat",))) == Drop("image-duplicate", "the same image as 0")
