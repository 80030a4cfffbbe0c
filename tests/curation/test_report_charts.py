"""How histograms are drawn, and which thresholds are marked in them."""

import pytest

from dcclip_cli.curation.report.axis import readable
from dcclip_cli.curation.report.charts import HEIGHT, WIDTH, Chart, Limit, chart
from dcclip_cli.curation.report.limits import limits_of
from dcclip_cli.curation.report.scales import SCALES


def drawn(name: str, fates: dict[str, dict[str, int]], *limits: Limit) -> Chart:
    found = chart(name, fates, limits)
    assert found is not None
    return found


def test_nothing_measured_is_nothing_drawn() -> None:
    assert chart("zh", {}) is None
    assert chart("zh", {"kept": {}}) is None


def test_kept_dropped_for_it_and_dropped_for_something_else_stand_on_each_other() -> None:
    found = drawn("zh", {"kept": {"3": 60}, "caption-short": {"3": 30}, "image-small": {"3": 10}})
    (bar,) = found.bars
    assert [(part.fate, part.y, part.height) for part in bar.parts] == [
        ("kept", pytest.approx(0.4 * HEIGHT), pytest.approx(0.6 * HEIGHT)),
        ("this", pytest.approx(0.1 * HEIGHT), pytest.approx(0.3 * HEIGHT)),
        ("other", pytest.approx(0.0), pytest.approx(0.1 * HEIGHT)),
    ]
    assert bar.title == "3 characters: 60 kept, 30 dropped for it, 10 dropped for something else"
    assert found.totals == {"kept": 60, "this": 30, "other": 10}


def test_one_pair_among_a_million_can_still_be_seen() -> None:
    found = drawn("zh", {"kept": {"3": 1_000_000}, "caption-short": {"1": 1}}, Limit(2, "above"))
    assert found.bars[0].parts[0].height == 1.5


def test_bars_keep_within_the_drawing_and_their_numbers_add_up() -> None:
    fates = {"kept": {str(at): 5 for at in range(250)}}
    found = drawn("en", fates)
    assert len(found.bars) <= 48
    assert found.bars[-1].x + found.bars[-1].width == pytest.approx(WIDTH)
    assert sum(int(bar.title.split(": ")[1].split(" ")[0]) for bar in found.bars) == 1250


def test_a_few_far_values_share_the_last_bar() -> None:
    found = drawn("zh", {"kept": {str(at): 100 for at in range(1, 11)}, "caption-long": {"256": 3}})
    assert found.bars[-1].title == "10 characters and more: 100 kept, 3 dropped for it"
    assert found.ticks[-1][1] == "more"


def test_a_threshold_stands_between_what_is_kept_and_what_goes() -> None:
    found = drawn("zh", {"kept": {str(at): 10 for at in range(2, 9)}, "caption-long": {"9": 1}}, Limit(8, "below"))
    nine = next(bar for bar in found.bars if bar.title.startswith("9 "))
    assert found.marks[0].x == pytest.approx(nine.x)
    assert found.marks[0].text == "≤ 8"


def test_a_threshold_far_from_all_values_points_outwards() -> None:
    found = drawn("zh", {"kept": {str(at): 10 for at in range(1, 9)}}, Limit(200, "below"))
    assert (found.marks[0].x, found.marks[0].text, found.marks[0].anchor) == (WIDTH, "≤ 200 ▸", "end")


def test_axes_have_round_numbers() -> None:
    sides = drawn("short_side", {"kept": dict.fromkeys(("32", "64", "256", "512"), 9)})
    assert [text for _, text in sides.ticks] == ["32", "64", "128", "256", "512"]
    lengths = drawn("en", {"kept": {str(at): 9 for at in range(1, 31)}})
    assert [text for _, text in lengths.ticks] == ["5", "10", "15", "20", "25", "30"]
    assert [text for _, text in lengths.grid] == ["5"]


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [(65536, "bytes", "64 K"), (3 << 20, "bytes", "3 M"), (12000, "short_side", "12,000"), (1.5, "aspect", "1.5")],
)
def test_values_are_written_as_people_write_them(value: float, scale: str, text: str) -> None:
    assert readable(value, SCALES[scale]) == text


def test_thresholds_are_those_of_the_rules() -> None:
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
