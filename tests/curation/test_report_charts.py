"""How histograms are cut into bars and drawn, and which thresholds are marked in them."""

import base64

import numpy as np
import pytest

from dcclip_cli.curation.filters import DEFAULT_FILTERS
from dcclip_cli.curation.report.html import cut_into_bars, histogram, limits_of, readable
from dcclip_cli.curation.report.statistics import SCALES


def counted(**values: int) -> np.ndarray:
    """Counts of the scale of Chinese captions: `kept` from 1 to 10, and so many dropped of a length."""
    counts = np.zeros((3, 257), np.int64)
    counts[0, 1:11] = 100
    for length, number in values.items():
        counts[1, int(length.removeprefix("of_"))] = number
    return counts


def svg(found: dict[str, str]) -> str:
    return base64.b64decode(found["image"].removeprefix("data:image/svg+xml;base64,")).decode()


def test_a_bar_counts_what_is_kept_and_dropped_and_a_few_far_values_are_in_the_last() -> None:
    edges, bars = cut_into_bars(SCALES["zh"], counted(of_3=30, of_256=3), [])
    assert edges.tolist() == [at + 0.5 for at in range(11)]
    assert bars.tolist() == [[100] * 10, [0, 0, 30, 0, 0, 0, 0, 0, 0, 3], [0] * 10]


def test_at_most_48_bars_count_every_value() -> None:
    edges, bars = cut_into_bars(SCALES["en"], np.full((3, 257), 5), [])
    assert len(edges) - 1 == bars.shape[1] <= 48
    assert bars.sum() == 3 * 257 * 5


@pytest.mark.parametrize(("limit", "last"), [(12, 13.5), (200, 10.5)])
def test_a_chart_reaches_to_a_near_threshold_and_not_to_a_far_one(limit: int, last: float) -> None:
    edges, _ = cut_into_bars(SCALES["zh"], counted(), [limit])
    assert edges[-1] == last


@pytest.mark.parametrize(
    ("name", "values", "ticks"),
    [
        ("short_side", ("32", "64", "256", "512"), ("32", "64", "128", "256", "512")),
        ("en", tuple(map(str, range(1, 31))), ("10", "20", "30")),
        ("bytes", ("65536", "1048576"), ("64 K", "1 M")),
    ],
)
def test_axes_have_round_numbers(name: str, values: tuple[str, ...], ticks: tuple[str, ...]) -> None:
    drawn = svg(histogram(name, {"kept": dict.fromkeys(values, 9)}))
    assert all(f">{tick}<" in drawn for tick in ticks)


def test_one_pair_among_a_million_is_visible_and_the_same_histogram_has_the_same_bytes() -> None:
    fates, limits = {"kept": {"3": 1_000_000}, "caption-short": {"1": 1}}, [("≥", 2), ("≤", 200)]
    found = histogram("zh", fates, limits)
    assert found == histogram("zh", fates, limits)
    assert histogram("score:agreement:zh", {"kept": {"0.25": 2}})["title"] == "Agreement, Chinese"
    assert (found["dropped"], found["alt"]) == (1, "Histogram: Chinese captions, threshold ≥ 2, ≤ 200")
    assert "#d6493b" in svg(found) and "≥ 2" in svg(found) and "≤ 200" not in svg(found)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(65536, "bytes", "64 K"), (3 << 20, "bytes", "3 M"), (12000, "", "12,000"), (1.5, "", "1.5")],
)
def test_values_are_written_as_people_write_them(value: float, unit: str, text: str) -> None:
    assert readable(value, unit) == text


def test_thresholds_are_those_of_the_filters() -> None:
    assert limits_of({"filters": [each.model_dump() for each in DEFAULT_FILTERS]}) == {
        "short_side": [("≥", 32)],
        "long_side": [],
        "aspect": [("≤", 3.0)],
        "bytes": [],
        "zh": [("≥", 1), ("≤", 128)],
        "en": [("≥", 1), ("≤", 64)],
    }
