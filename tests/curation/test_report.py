"""Counts and examples of a collection, and its report as a browser sees it: complete, harmless, the same each time."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcclip_cli.curation.filters.image import ImageFilter, decode_image
from dcclip_cli.curation.report import steps, write_report
from dcclip_cli.curation.report.account import DroppedCaption, Example, Examples, Statistics
from dcclip_cli.data.decoded import DecodedImage
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop
from tests.curation.conftest import make_picture
from tests.images import encode


def test_sizes_and_lengths_are_counted_in_the_bins_of_their_scales() -> None:
    statistics = Statistics()
    statistics.add(Pair("k", b""), Drop("url-timeout"))  # no image: no size
    assert statistics.as_dict()["histograms"] == {}
    pair = Pair("k", b"12345678", ("红色 的汽车，好看！",), ("a  red car, nice!",), {"source": "s"})
    statistics.add(pair, None, (32, 63))
    assert statistics.as_dict()["histograms"] == {
        "aspect": {"kept": {"1.9": 1}},
        "bytes": {"kept": {"64": 1}},  # the first
        "en": {"kept": {"4": 1}},  # words
        "long_side": {"kept": {"53.817": 1}},  # 4 x 2^3.75, the next begins at 64
        "short_side": {"kept": {"32": 1}},  # bins begin at 4 x 2^(n/4)
        "zh": {"kept": {"9": 1}},  # characters
    }


def sampled(number: int, image: bytes = b"", zh: tuple[str, ...] = ("一只猫",)) -> Pair:
    return Pair(f"{number:011d}", image, zh, ("a cat",), {"source": "照片", "origin": f"{number}.jpg"})


def shown(thumbnail: str | None) -> Image.Image:
    assert thumbnail
    return Image.open(io.BytesIO(base64.b64decode(thumbnail.removeprefix("data:image/jpeg;base64,"))))


def only(pair: Pair, drop: Drop | None, image: Image.Image | None = None) -> Example:
    examples = Examples()
    decoded = decode_image(encode(image) if image else pair.image)
    examples.add(pair, drop, decoded if isinstance(decoded, DecodedImage) else None)
    (example,) = examples.all()
    return example


def test_a_duplicate_is_shown_next_to_the_image_that_is_kept() -> None:
    first = sampled(1, make_picture("blue"))
    second = sampled(2, make_picture("red"))
    examples = Examples()
    examples.add(first, None)
    examples.add(second, Drop("image-duplicate", "the same image as 1"), twin=first.key)
    examples.add(sampled(3), Drop("image-near-duplicate"), twin="4")  # neither of them is found
    assert {example.thumbnail for example in examples.all()} == {""}
    examples.fill({first.key: first, second.key: second}.get)
    duplicate, near, kept_example = examples.all()
    assert (kept_example.thumbnail, kept_example.size) == (only(first, None).thumbnail, "64×64")
    assert (duplicate.thumbnail, duplicate.twin_thumbnail) == (only(second, None).thumbnail, kept_example.thumbnail)
    assert (near.thumbnail, near.twin_thumbnail, near.size) == ("", "", "")


HOSTILE = "</bdi></style><script>alert('1')</script><img src=x onerror=alert(2)>\x00\u202egnp.exe\"'&amp;{{ 7*7 }}"
VOID = {"meta", "img", "br"}
MANIFEST = {
    "options": {"filters": [ImageFilter().model_dump()], "名字": "值"},
    "shards": [{"name": "000000.tar", "pairs": 1, "sha256": "ab" * 32}],
    "versions": {"dcclip": "1.2.3", "duckdb": None},
}


class Page(HTMLParser):
    """The page as parsed: elements, attributes, text, and the elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def values(self, name: str) -> list[str]:
        return [value or "" for attribute, value in self.attributes if attribute == name]


def report(tmp_path: Path, *results: tuple[Pair, Drop | None, tuple[DroppedCaption, ...]], **manifest: Any) -> str:
    statistics = Statistics()
    examples = Examples()
    for pair, drop, captions in results:
        statistics.add(pair, drop, (40, 20) if pair.image else None, captions)
        examples.add(pair, drop, None, captions)
    write_report(tmp_path / "report.html", statistics.as_dict(), examples.all(), MANIFEST | manifest)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def pair(number: int = 0, zh: str = "一只猫，在睡觉。", en: str = "a cat sleeps", source: str = "照片") -> Pair:
    meta = {"source": source, "origin": f"{number}.png"}
    return Pair(f"{number:011d}", make_picture(size=(40, 20)), (zh,), (en,), meta)


def test_it_shows_kept_and_dropped_captions_in_chinese_and_english(tmp_path: Path) -> None:
    gone: tuple[DroppedCaption, ...] = (("zh", "点击查看大图", Drop("caption-boilerplate", "holds '点击查看'")),)
    dropped = (pair(3, "狗", "a dog"), Drop("image-small", "40 x 20 pixels"), ())
    page = Page(report(tmp_path, (pair(1), None, ()), (pair(2), None, gone), dropped))
    text = " ".join(page.text.split())
    assert "2 of 3 pairs kept" in text
    for shown in ("一只猫，在睡觉。", "点击查看大图", "holds '点击查看'", "40 x 20 pixels", "a dog"):
        assert shown in text
    assert "image-small 1 pair (33.3 %), 1 Chinese caption (25.0 %), 1 English caption (33.3 %); 1 shown" in text
    assert "caption-boilerplate 1 Chinese caption (25.0 %); 1 shown" in text
    assert "filters: {kind: image, min_side}" in text
    assert "Histogram: Shorter side, threshold ≥ 32" in page.values("aria-label")
    assert page.open == []
    assert "0 of 0 pairs kept" in Page(report(tmp_path, shards=[])).text


def test_it_is_in_the_users_language_but_for_what_comes_from_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCCLIP_LANG", "zh")
    source = report(tmp_path, (pair(1), None, ()), (pair(3, "狗", "kept"), Drop("url-status-404", "kept"), ()))
    text = " ".join(Page(source).text.split())
    assert '<html lang="zh-CN">' in source
    phrases = "2 个图文对保留了 1 个|服务器返回状态码 404。|1 个图文对（50.0 %），1 条中文描述（50.0 %）|短边 像素|kept"
    assert [phrase for phrase in phrases.split("|") if phrase not in text] == []
    monkeypatch.setenv("DCCLIP_LANG", "en")
    assert '<html lang="en">' in report(tmp_path, (pair(1), None, ()))


def test_nothing_from_outside_can_act_in_the_page(tmp_path: Path) -> None:
    evil = Pair(HOSTILE, b"", (HOSTILE,), (HOSTILE,), {"source": HOSTILE, "origin": HOSTILE})
    gone: tuple[DroppedCaption, ...] = (("zh", HOSTILE, Drop("caption-html", HOSTILE)),)
    manifest = {"options": {"sources": [HOSTILE]}, "versions": {HOSTILE: HOSTILE}}
    shards = [{"name": HOSTILE, "pairs": 1, "sha256": "0"}]
    results = ((evil, None, ()), (pair(1, source="b"), Drop(HOSTILE, HOSTILE), gone))
    page = Page(report(tmp_path, *results, **manifest, shards=shards))
    assert page.open == []
    assert "script" not in page.elements
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert "<script>alert('1')</script>" in page.text  # shown, as text
    assert "49" not in page.text.split()
    source = (tmp_path / "report.html").read_text("utf-8")
    assert not [call for call in ("http:", "https:", "@import", "url(") if call in source]  # nor asks a network
    assert "default-src 'none'" in source


def test_what_is_left_after_each_step_adds_up() -> None:
    statistics = Statistics()
    for number, reason in enumerate(("url-tls", "image-small", "image-small", "no-caption", "image-merged", "strange")):
        statistics.add(pair(number), Drop(reason))
    statistics.add(pair(9), None)
    table = [(step["name"], step["pairs"], step["left"]) for step in steps(statistics.as_dict())]
    dropped = [("Download", 1, 6), ("Image", 2, 4), ("Empty pairs", 1, 3), ("Duplicates", 1, 2), ("Other", 1, 1)]
    assert table == dropped
