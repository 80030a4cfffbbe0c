"""Examples of pairs in the report."""

import base64
import io
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop

SMALL = Drop("image-small", "20 x 10 pixels, shortest side allowed 32")


def jpeg(width: int = 40, height: int = 20, colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "JPEG")
    return stream.getvalue()


def pair(number: int, image: bytes = b"", zh: tuple[str, ...] = ("一只猫",)) -> Pair:
    return Pair(f"{number:011d}", image, zh, ("a cat",), {"source": "照片", "origin": f"{number}.jpg"})


def shown(thumbnail: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(thumbnail.removeprefix("data:image/jpeg;base64,"))))


def sample(pairs: Sequence[Pair], per_reason: int = 3) -> Examples:
    examples = Examples(per_reason)
    for one in pairs:
        examples.add(one, SMALL if int(one.key) % 2 else None)
    return examples


def keys(examples: Examples, reason: str) -> list[str]:
    return [example.key for example in examples.all() if example.reason == reason]


def test_the_sample_depends_neither_on_the_order_nor_on_the_slices(tmp_path: Path) -> None:
    pairs = [pair(number) for number in range(100)]
    whole = sample(pairs)
    shuffled = random.Random(0).sample(pairs, len(pairs))
    for number, part in enumerate((shuffled[:13], shuffled[13:60], shuffled[60:])):
        sample(part).write(tmp_path / f"{number}.json")
    merged = Examples.merge(sorted(tmp_path.glob("*.json")), per_reason=3)
    assert merged.all() == whole.all()
    assert len(keys(merged, "kept")) == len(keys(merged, "image-small")) == 3


def test_equal_samples_are_equal_files(tmp_path: Path) -> None:
    pairs = [pair(number, jpeg()) for number in range(10)]
    sample(pairs).write(tmp_path / "a")
    sample(pairs[::-1]).write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_example_shows_the_picture_small_and_says_where_it_came_from() -> None:
    examples = Examples()
    examples.add(pair(7, jpeg(400, 200)), SMALL)
    (example,) = examples.all()
    assert (example.origin, example.detail) == ("照片:7.jpg", SMALL.detail)
    assert (example.zh, example.en, example.size) == (["一只猫"], ["a cat"], "400×200")
    assert shown(example.thumbnail).size == (96, 48)


def test_a_thumbnail_is_on_white_and_at_least_one_pixel_wide() -> None:
    examples = Examples()
    examples.add(pair(0), None, Image.new("RGBA", (50, 50), (0, 0, 0, 0)))
    examples.add(pair(1), SMALL, Image.new("RGB", (2, 2000)))
    long, clear = (shown(example.thumbnail) for example in examples.all())
    assert clear.getpixel((25, 25)) == (255, 255, 255)
    assert long.size == (1, 96)


@pytest.mark.parametrize("image", [b"", b"not an image", jpeg()[:100]])
def test_what_cannot_be_decoded_is_shown_without_a_picture(image: bytes) -> None:
    examples = Examples()
    examples.add(pair(0, image), Drop("image-unreadable"))
    (example,) = examples.all()
    assert (example.thumbnail, example.size) == ("", "")


def test_a_dropped_caption_stands_apart_from_those_that_stay() -> None:
    examples = Examples()
    gone = [("zh", "图片", Drop("caption-placeholder", "says nothing")), ("en", "x", Drop("caption-short"))]
    examples.add(pair(0), None, captions=gone)  # type: ignore[arg-type]
    kept, placeholder, short = sorted(examples.all(), key=lambda example: (example.reason != "kept", example.reason))
    assert (kept.zh_dropped, kept.en_dropped) == ([], [])
    assert (placeholder.zh_dropped, placeholder.detail, placeholder.zh) == (["图片"], "says nothing", ["一只猫"])
    assert (short.reason, short.zh_dropped, short.en_dropped) == ("caption-short", [], ["x"])


def test_a_pair_dropped_for_want_of_captions_shows_what_became_of_them() -> None:
    examples = Examples()
    bare = Pair("k", b"")
    gone = [("zh", "图片", Drop("caption-placeholder")), ("en", "x", Drop("caption-short"))]
    examples.add(bare, Drop("no-caption", "none that is fit"), captions=gone)  # type: ignore[arg-type]
    (example,) = [example for example in examples.all() if example.reason == "no-caption"]
    assert example.detail == "none that is fit (caption-placeholder, caption-short)"
    assert (example.zh_dropped, example.en_dropped) == (["图片"], ["x"])


def test_a_duplicate_is_shown_next_to_the_image_that_is_kept() -> None:
    first = pair(1, jpeg(colour="blue"))
    examples = Examples()
    examples.add(pair(2, first.image), Drop("image-duplicate", "the same image as 1"), twin=first.key)
    examples.add(pair(3), Drop("image-duplicate"), twin="4")  # 4 is not found
    examples.fill_twins({first.key: first}.get)
    assert {example.twin_thumbnail == example.thumbnail for example in examples.all()} == {True}
    assert sorted(bool(example.twin_thumbnail) for example in examples.all()) == [False, True]


def test_long_texts_and_long_lists_are_cut() -> None:
    examples = Examples()
    examples.add(pair(0, zh=("猫" * 5_000, *"一二三四五")), None)
    (example,) = examples.all()
    assert example.zh == ["猫" * 300 + "…", "一", "二", "三"]


def test_half_a_character_can_be_written(tmp_path: Path) -> None:
    examples = Examples()
    examples.add(Pair("k\ud800", b"", ("猫\ud800",)), Drop("caption-control", "holds \ud800"))
    examples.write(tmp_path / "e")
    (example,) = Examples.merge([tmp_path / "e"]).all()
    assert (example.key, example.zh, example.detail) == ("k?", ["猫?"], "holds ?")


def test_no_examples_can_be_asked_for() -> None:
    assert sample([pair(1), pair(2)], per_reason=0).all() == []


def test_thumbnails_are_made_only_of_what_is_in_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []

    def counted(content: bytes, image: object) -> tuple[str, str]:
        made.append(content)
        return "", ""

    monkeypatch.setattr("dcclip_cli.curation.report.examples._shrunk", counted)
    examples = Examples(per_reason=2)
    for number in range(2_000):
        examples.add(pair(number), None)
    assert len(made) < 40  # 2 x (1 + ln 1000) = 16 are expected
