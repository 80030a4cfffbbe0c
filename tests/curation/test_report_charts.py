"""How histograms are cut into bars and drawn, and which thresholds are marked in them."""

import base64

import pytest

from dcclip_cli.curation.report.charts import Histogram, Limit, draw, histogram, limits_of, readable


def bars(name: str, fates: dict[str, dict[str, int]], *limits: Limit) -> Histogram:
    found = histogram(name, fates, limits)
    assert found is not None
    return found


def svg(found: Histogram) -> str:
    return base64.b64decode(draw(found).removeprefix("data:image/svg+xml;base64,")).decode()


def test_nothing_measured_is_nothing_drawn() -> None:
    assert histogram("zh", {}) is None
    assert histogram("zh", {"kept": {}}) is None


def test_a_bar_counts_kept_dropped_for_this_quantity_and_dropped_for_another_reason() -> None:
    found = bars("zh", {"kept": {"3": 60}, "caption-short": {"3": 30}, "image-small": {"3": 10}})
    three = found.edges.index(2.5)
    assert {fate: numbers[three] for fate, numbers in found.counts.items()} == {"kept": 60, "this": 30, "other": 10}
    assert found.totals == {"kept": 60, "this": 30, "other": 10}


def test_at_most_48_bars_count_every_value() -> None:
    found = bars("en", {"kept": {str(at): 5 for at in range(250)}})
    assert len(found.edges) - 1 == len(found.counts["kept"]) <= 48
    assert found.totals["kept"] == 1250


def test_a_few_far_values_are_counted_in_the_last_bar() -> None:
    found = bars("zh", {"kept": {str(at): 100 for at in range(1, 11)}, "caption-long": {"256": 3}})
    assert found.edges[-1] == 10.5
    assert (found.counts["kept"][-1], found.counts["this"][-1]) == (100, 3)


@pytest.mark.parametrize(("limit", "shown"), [(8, "≤ 8"), (200, "≤ 200 ▸")])
def test_a_threshold_is_marked_and_points_outwards_if_it_is_far_from_all_values(limit: int, shown: str) -> None:
    found = bars("zh", {"kept": {str(at): 10 for at in range(2, 9)}, "caption-long": {"9": 1}}, Limit(limit, "below"))
    assert shown in svg(found)
    assert (found.edges[-1] > limit) == (limit == 8)


@pytest.mark.parametrize(
    ("name", "values", "ticks"),
    [
        ("short_side", ("32", "64", "256", "512"), ("32", "64", "128", "256", "512")),
        ("en", tuple(map(str, range(1, 31))), ("10", "20", "30")),
        ("bytes", ("65536", "1048576"), ("64 K", "1 M")),
    ],
)
def test_axes_have_round_numbers(name: str, values: tuple[str, ...], ticks: tuple[str, ...]) -> None:
    drawn = svg(bars(name, {"kept": dict.fromkeys(values, 9)}))
    assert all(f">{tick}<" in drawn for tick in ticks)


def test_one_pair_among_a_million_is_visible_and_the_same_histogram_has_the_same_bytes() -> None:
    found = bars("zh", {"kept": {"3": 1_000_000}, "caption-short": {"1": 1}}, Limit(2, "above"))
    assert "#d6493b" in svg(found)
    assert draw(found) == draw(found)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(65536, "bytes", "64 K"), (3 << 20, "bytes", "3 M"), (12000, "", "12,000"), (1.5, "", "1.5")],
)
def test_values_are_written_as_people_write_them(value: float, unit: str, text: str) -> None:
    assert readable(value, unit) == text


def test_thresholds_are_those_of_the_filters() -> None:
    image = {"kind": "image", "min_side": 32, "max_side": None, "max_aspect": 3.0, "min_bytes": 0, "max_bytes": 9000}
    filters = [image, {"kind": "length", "zh": [2, 100], "en": [0, 64]}, {"kind": "language"}]
    assert limits_of({"filters": filters}, {}) == {
        "short_side": [Limit(32, "above")],
        "long_side": [],
        "aspect": [Limit(3.0, "below")],
        "bytes": [Limit(9000, "below")],
        "zh": [Limit(2, "above"), Limit(100, "below")],
        "en": [Limit(64, "below")],
    }


def test_thresholds_are_those_of_the_scorers() -> None:
    agreement = {"kind": "agreement", "name": None, "threshold": {"zh": 0.2, "en": None}, "keep": {"en": 0.8}}
    classifier = {"kind": "classifier", "name": "nsfw", "reject": ["Not safe!"], "threshold": 0.7, "below": False}
    prompts = {"kind": "prompts", "name": None, "threshold": 0.5}
    kept = {"kept": {"0.25": 3, "0.3": 9}, "agreement-low": {"0.245": 2}}
    names = ("score:agreement:zh", "score:agreement:en", "score:classifier-nsfw-not-safe", "score:prompts")
    found = limits_of({"scores": [agreement, classifier, prompts]}, dict.fromkeys(names, kept))
    assert [round(limit.value, 6) for limit in found.pop("score:agreement:en")] == [0.25]  # the lowest that was kept
    assert found == {
        "score:agreement:zh": [Limit(0.2, "above")],
        "score:classifier-nsfw-not-safe": [Limit(0.7, "below")],
        "score:prompts": [Limit(0.5, "below")],
    }
