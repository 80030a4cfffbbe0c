"""The report as a browser sees it: complete, harmless, the same for the same collection; and its histograms."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.curation.filters import DEFAULT_FILTERS
from dcclip_cli.curation.filters.image import ImageFilter
from dcclip_cli.curation.report import cut_into_bars, explain, histogram, limits_of, steps, write_report
from dcclip_cli.curation.report.examples import Examples
from dcclip_cli.curation.report.statistics import SCALES, DroppedCaption, Statistics
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop
from dcclip_cli.html import percent, readable, visible
from tests.curation.conftest import make_picture

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
    statistics, examples = Statistics(), Examples()
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
    shown = (
        "2 个图文对保留了 1 个",
        "服务器返回状态码 404。",
        "1 个图文对（50.0 %），1 条中文描述（50.0 %）",
        "短边 像素",
        "kept",
    )
    assert [one for one in shown if one not in text] == []
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


def test_shares_values_and_unseen_characters_are_written_for_people() -> None:
    shares = {(0, 9): "0 %", (1, 3): "33.3 %", (1, 100_000): "< 0.01 %", (99_999, 100_000): "99.99 %"}
    assert {share: percent(*share) for share in shares} == shares
    assert [readable(65536, "bytes"), readable(12000, ""), readable(1.5, "")] == ["64 K", "12,000", "1.5"]
    assert visible("a\x00b\u202ec，猫\n👨\u200d👩") == "a⟨U+0000⟩b⟨U+202E⟩c，猫\n👨\u200d👩"


def test_every_reason_belongs_to_a_step_and_one_made_of_a_number_or_a_label_is_explained() -> None:
    expected = {
        "Reading": "row-malformed row-new image-missing",
        "Download": "url-status-404 url-new",
        "Image": "image-small image-never-heard-of",
        "Captions": "caption-html",
        "Empty pairs": "no-caption",
        "Scores": "agreement-low classifier-nsfw",
        "Duplicates": "caption-near-duplicate image-merged",
        "Decontamination": "evaluation-image",
        "Other": "something",
    }
    for step, reasons in expected.items():
        assert {explain(reason)[0] for reason in reasons.split()} == {step}
    assert explain("url-status-404") == ("Download", "The server answered with status 404.", "")
    assert "does not match" in explain("agreement-light-low")[1]
    setting = "scores: {kind: classifier, reject, threshold}"
    assert explain("classifier-nsfw") == ("Scores", "The classifier's label: nsfw.", setting)


def test_bars_count_every_value_and_reach_to_a_near_threshold_but_not_to_a_far_one() -> None:
    counts = np.zeros((3, 257), np.int64)
    counts[0, 1:11] = 100  # kept
    for limit, last in ((12, 13.5), (200, 10.5)):
        assert cut_into_bars(SCALES["zh"], counts, [limit])[0][-1] == last
    counts[1, [3, 256]] = 30, 3  # dropped
    edges, bars = cut_into_bars(SCALES["zh"], counts, [])
    assert edges.tolist() == [at + 0.5 for at in range(11)]
    assert bars.tolist() == [[100] * 10, [0, 0, 30, 0, 0, 0, 0, 0, 0, 3], [0] * 10]  # a far value is in the last bar
    edges, bars = cut_into_bars(SCALES["en"], np.full((3, 257), 5), [])
    assert len(edges) - 1 == bars.shape[1] <= 48
    assert bars.sum() == 3 * 257 * 5


def test_one_pair_among_a_million_is_visible_and_the_same_histogram_has_the_same_bytes() -> None:
    fates, limits = {"kept": {"3": 1_000_000}, "caption-short": {"1": 1}}, [("≥", 2), ("≤", 200)]
    found = histogram("zh", fates, limits)
    assert found == histogram("zh", fates, limits)
    assert histogram("score:agreement:zh", {"kept": {"0.25": 2}})["title"] == "Agreement, Chinese"
    assert (found["dropped"], found["alt"]) == (1, "Histogram: Chinese captions, threshold ≥ 2, ≤ 200")
    assert [bar["fate"] for bar in found["bars"] if bar["height"] >= 1] == ["kept", "this"]
    assert [limit["text"] for limit in found["limits"]] == ["≥ 2"]


def test_thresholds_are_those_of_the_filters() -> None:
    assert limits_of({"filters": [each.model_dump() for each in DEFAULT_FILTERS]}) == {
        "short_side": [("≥", 32)],
        "long_side": [],
        "aspect": [("≤", 3.0)],
        "bytes": [],
        "zh": [("≥", 1), ("≤", 128)],
        "en": [("≥", 1), ("≤", 64)],
    }
