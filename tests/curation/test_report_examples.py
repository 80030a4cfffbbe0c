"""Examples of pairs in the report."""

import base64
import io
import random
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from dcclip_cli.curation.filters.image import DecodedImage, decode_image
from dcclip_cli.curation.report.examples import Example, Examples
from dcclip_cli.curation.report.statistics import DroppedCaption
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop
from tests.curation.conftest import make_picture
from tests.images import encode

SMALL = Drop("image-small", "20 x 10 pixels, shortest side allowed 32")
GONE: list[DroppedCaption] = [
    ("zh", "图片", Drop("caption-placeholder", "says nothing")),
    ("en", "x", Drop("caption-short")),
]


def pair(number: int, image: bytes = b"", zh: tuple[str, ...] = ("一只猫",)) -> Pair:
    return Pair(f"{number:011d}", image, zh, ("a cat",), {"source": "照片", "origin": f"{number}.jpg"})


def shown(thumbnail: str | None) -> Image.Image:
    assert thumbnail
    return Image.open(io.BytesIO(base64.b64decode(thumbnail.removeprefix("data:image/jpeg;base64,"))))


def sample(pairs: Sequence[Pair], per_reason: int = 3) -> Examples:
    examples = Examples(per_reason)
    for one in pairs:
        examples.add(one, SMALL if int(one.key) % 2 else None)
    return examples


def only(pair: Pair, drop: Drop | None, image: Image.Image | None = None) -> Example:
    examples, found = Examples(), decode_image(encode(image) if image else pair.image)
    examples.add(pair, drop, found if isinstance(found, DecodedImage) else None)
    (example,) = examples.all()
    return example


def test_the_sample_and_its_bytes_depend_neither_on_the_order_nor_on_the_slices(tmp_path: Path) -> None:
    pairs = [pair(number, make_picture()) for number in range(100)]
    whole = sample(pairs)
    shuffled = random.Random(0).sample(pairs, len(pairs))
    for number, part in enumerate((shuffled[:13], shuffled[13:60], shuffled[60:])):
        sample(part).write(tmp_path / f"{number}.json")
    merged = Examples.merge(sorted(tmp_path.glob("*.json")), per_reason=3)
    assert merged.all() == whole.all()
    assert [example.reason for example in merged.all()] == 3 * ["image-small"] + 3 * ["kept"]
    for name, examples in (("whole", whole), ("merged", merged)):
        examples.write(tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "merged").read_bytes()


def test_an_example_has_a_small_image_and_its_position_in_its_source() -> None:
    example = only(pair(7, make_picture(size=(400, 200))), SMALL)
    assert (example.origin, example.detail, example.size) == ("照片:7.jpg", SMALL.detail, "400×200")
    assert (example.zh, example.en) == (["一只猫"], ["a cat"])
    assert shown(example.thumbnail).size == (96, 48)
    clear = shown(only(pair(0), None, Image.new("RGBA", (50, 50), (0, 0, 0, 0))).thumbnail)
    assert clear.getpixel((25, 25)) == (255, 255, 255)
    assert shown(only(pair(1), SMALL, Image.new("RGB", (2, 190))).thumbnail).size == (1, 96)


@pytest.mark.parametrize("image", [b"", b"not an image", make_picture()[:100]])
def test_what_cannot_be_decoded_is_shown_without_an_image(image: bytes) -> None:
    example = only(pair(0, image), Drop("image-unreadable"))
    assert (example.thumbnail, example.size) == ("", "")


def test_a_dropped_caption_is_shown_apart_from_those_that_are_kept_and_for_an_empty_pair_with_its_reason() -> None:
    examples = Examples()
    examples.add(pair(0), None, captions=GONE)
    placeholder, short, kept = examples.all()
    assert (kept.reason, kept.zh_dropped, kept.en_dropped) == ("kept", [], [])
    assert (placeholder.zh_dropped, placeholder.detail, placeholder.zh) == (["图片"], "says nothing", ["一只猫"])
    assert (short.reason, short.zh_dropped, short.en_dropped) == ("caption-short", [], ["x"])
    examples.add(Pair("k", b""), Drop("no-caption", "none that is fit"), captions=GONE)
    (empty,) = [example for example in examples.all() if example.reason == "no-caption"]
    assert empty.detail == "none that is fit (caption-placeholder, caption-short)"
    assert (empty.zh_dropped, empty.en_dropped) == (["图片"], ["x"])


def test_a_duplicate_is_shown_next_to_the_image_that_is_kept() -> None:
    first, second = pair(1, make_picture("blue")), pair(2, make_picture("red"))
    examples = Examples()
    examples.add(first, None)
    examples.add(second, Drop("image-duplicate", "the same image as 1"), twin=first.key)
    examples.add(pair(3), Drop("image-near-duplicate"), twin="4")  # neither of them is found
    assert {example.thumbnail for example in examples.all()} == {""}
    examples.fill({first.key: first, second.key: second}.get)
    duplicate, near, kept = examples.all()
    assert (kept.thumbnail, kept.size) == (only(first, None).thumbnail, "64×64")
    assert (duplicate.thumbnail, duplicate.twin_thumbnail) == (only(second, None).thumbnail, kept.thumbnail)
    assert (near.thumbnail, near.twin_thumbnail, near.size) == ("", "", "")


def test_long_texts_and_long_lists_are_cut_and_half_a_character_is_replaced() -> None:
    assert only(pair(0, zh=("猫" * 5_000, *"一二三四五")), None).zh == ["猫" * 300 + "…", "一", "二", "三"]
    half = only(Pair("k\ud800", b"", ("猫\ud800",)), Drop("caption-control", "holds \ud800"))
    assert (half.key, half.zh, half.detail) == ("k?", ["猫?"], "holds ?")


def test_thumbnails_are_made_only_of_what_is_in_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk = Mock(return_value=("", ""))
    monkeypatch.setattr("dcclip_cli.curation.report.examples._shrunk", shrunk)
    sample([pair(number) for number in range(0, 4_000, 2)], per_reason=2)
    assert shrunk.call_count < 40  # 2 x (1 + ln 1000) = 16 are expected
    assert sample([pair(1), pair(2)], per_reason=0).all() == []
