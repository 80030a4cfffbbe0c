"""Counts and histograms, and their sums over the slices of a collection."""

import json

from dcclip_cli.curation.report.statistics import Statistics
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.reading import Drop

SHORT = Drop("caption-short", "1 words, allowed 2 to 64")


def pair(key: str = "k", zh: tuple[str, ...] = (), en: tuple[str, ...] = (), source: str = "s") -> Pair:
    return Pair(key, b"12345678", zh, en, {"source": source})


def test_pairs_and_captions_are_counted_by_their_reasons_and_pairs_by_their_sources() -> None:
    statistics = Statistics()
    statistics.add(pair(zh=("一只猫",), en=("a cat", "the cat"), source="甲"), None, (64, 48))
    statistics.add(pair(zh=("狗",), en=(), source="乙"), Drop("image-small"), (20, 10))
    statistics.add(pair(en=("a red bus",), source="甲"), None, (64, 64), [("en", "bus", SHORT), ("zh", "车", SHORT)])
    counted = statistics.as_dict()
    assert counted["pairs"] == {"read": 3, "kept": 2, "dropped": {"image-small": 1}}
    assert counted["captions"]["zh"] == {"read": 3, "kept": 1, "dropped": {"caption-short": 1, "image-small": 1}}
    assert counted["captions"]["en"] == {"read": 4, "kept": 3, "dropped": {"caption-short": 1}}
    dog = {"read": 1, "kept": 0, "dropped": {"image-small": 1}}
    assert counted["sources"] == {"乙": dog, "甲": {"read": 2, "kept": 2, "dropped": {}}}
    statistics.add(pair(zh=("一只猫",)), Drop("image-merged"))  # its caption is in another pair
    assert statistics.as_dict()["captions"]["zh"] == counted["captions"]["zh"]


def test_sizes_and_lengths_are_counted_in_the_bins_of_their_scales() -> None:
    statistics = Statistics()
    statistics.add(Pair("k", b""), Drop("url-timeout"))  # no image: no size
    assert statistics.as_dict()["histograms"] == {}
    statistics.add(pair(zh=("红色 的汽车，好看！",), en=("a  red car, nice!",)), None, (32, 63))
    assert statistics.as_dict()["histograms"] == {
        "aspect": {"kept": {"1.9": 1}},
        "bytes": {"kept": {"64": 1}},  # the first
        "en": {"kept": {"4": 1}},  # words
        "long_side": {"kept": {"53.817": 1}},  # 4 x 2^3.75, the next begins at 64
        "short_side": {"kept": {"32": 1}},  # bins begin at 4 x 2^(n/4)
        "zh": {"kept": {"9": 1}},  # characters
    }


def test_a_score_is_counted_with_what_became_of_its_caption() -> None:
    statistics = Statistics()
    statistics.add_score("agreement", 0.3, None, "zh")
    statistics.add_score("agreement", 0.101, Drop("agreement-low"), "zh")
    statistics.add_score("watermark", 0.9, None)
    assert statistics.as_dict()["histograms"] == {
        "score:agreement:zh": {"kept": {"0.3": 1}, "agreement-low": {"0.1": 1}},
        "score:watermark": {"kept": {"0.9": 1}},
    }


def test_the_sum_of_parts_is_the_whole_in_any_order_and_through_json() -> None:
    whole, parts = Statistics(), [Statistics(), Statistics()]
    for number in range(20):
        for statistics in (whole, parts[number % 2]):
            drop = Drop("image-small") if number % 3 == 0 else None
            one = pair(zh=("猫" * number,), en=("cat " * number,), source=str(number % 4))
            statistics.add(one, drop, (number + 10, 50), [("en", "x", SHORT)])
    stored = [json.loads(json.dumps(part.as_dict())) for part in parts]
    expected = json.dumps(whole.as_dict())
    assert json.dumps(Statistics.merge(stored).as_dict()) == expected
    assert json.dumps(Statistics.merge(reversed(stored)).as_dict()) == expected
