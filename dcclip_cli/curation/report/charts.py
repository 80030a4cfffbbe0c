"""Histograms of the report, kept and dropped stacked, with the recipe's thresholds marked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from dcclip_cli.curation.report.statistics import KEPT, Scale, scale_of, split
from dcclip_cli.data.pair import LANGUAGES
from dcclip_cli.html import svg_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS = 48  # at most
_MIN_BINS = 8  # fewer bars, as wide as the whole chart, do not look like a histogram
_TAIL = 0.01  # of all values, at either end, may be counted in the outermost bars
_VISIBLE = 0.0125  # height of the smallest part of a bar, relative to the highest bar
_COLOURS = {"kept": "#2b8a7e", "this": "#d6493b", "other": "#aeb6bd"}  # as in html.css
_TEXT, _MARK = "#7d8790", "#c2483a"  # legible on light and dark pages


@dataclass(frozen=True)
class Limit:
    """A threshold: values `above` or `below` it, and the value itself, are kept."""

    value: float
    keeps: Literal["above", "below"]

    def text(self, unit: str) -> str:
        return ("≥ " if self.keeps == "above" else "≤ ") + readable(self.value, unit)


@dataclass(frozen=True)
class Histogram:
    """Bars of a histogram: `counts` of what was kept, dropped by a filter on `this` quantity, or for an `other` reason.

    `edges` has one more entry than there are bars. The outermost bars also count all values beyond them.
    """

    scale: Scale
    edges: tuple[float, ...]
    counts: Mapping[str, Sequence[int]]
    limits: tuple[Limit, ...] = ()

    @property
    def totals(self) -> dict[str, int]:
        return {fate: sum(numbers) for fate, numbers in self.counts.items()}


def histogram(name: str, fates: Mapping[str, Mapping[str, int]], limits: Iterable[Limit] = ()) -> Histogram | None:
    """The bars for one of the histograms in `Statistics.as_dict`; None if nothing was measured."""
    scale, limits = scale_of(name), tuple(limits)
    bins: dict[str, list[int]] = {fate: [0] * scale.bins for fate in _COLOURS}
    for reason, found in fates.items():
        fate = "kept" if reason == KEPT else "this" if reason in scale.reasons else "other"
        for at, number in found.items():
            bins[fate][scale.number(at)] += number
    sums = [sum(numbers) for numbers in zip(*bins.values(), strict=True)]
    if not any(sums):
        return None
    first, last = _span(sums, [scale.position(limit.value) for limit in limits])
    step = math.ceil((last - first) / _BARS)
    first -= first % step
    count = math.ceil((last - first) / step)
    edges = tuple(scale.edge(first + number * step) - (0.5 if scale.whole else 0) for number in range(count + 1))
    return Histogram(scale, edges, {fate: _bars(found, first, step, count) for fate, found in bins.items()}, limits)


def _span(sums: Sequence[int], limits: Sequence[float]) -> tuple[int, int]:
    """The bins to draw, first and one past the last: nearly all values, and thresholds that are not far away."""
    total, seen, first, last = sum(sums), 0, 0, len(sums)
    for at, number in enumerate(sums):
        if number and seen <= total * _TAIL:
            first = at
        if number and seen < total * (1 - _TAIL):
            last = at + 1
        seen += number
    room = max(_MIN_BINS, last - first)
    for limit in limits:
        if first - 2 * room <= limit <= last + 2 * room:
            first, last = min(first, math.floor(limit) - 1), max(last, math.ceil(limit) + 2)
    if last - first < _MIN_BINS:
        first -= (_MIN_BINS - last + first) // 2
    first = max(0, first)
    return first, min(len(sums), max(last, first + _MIN_BINS))


def _bars(numbers: Sequence[int], first: int, step: int, count: int) -> list[int]:
    bars = [sum(numbers[first + at * step : first + (at + 1) * step]) for at in range(count)]
    bars[0] += sum(numbers[:first])
    bars[-1] += sum(numbers[first + count * step :])
    return bars


def draw(found: Histogram) -> str:
    """The histogram as a data URL of an SVG image."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    scale, edges = found.scale, found.edges
    most = max(map(sum, zip(*found.counts.values(), strict=True)))

    def onto(axes: Axes) -> None:
        bottom = [0.0] * (len(edges) - 1)
        widths = [right - left for left, right in pairwise(edges)]
        for fate, numbers in found.counts.items():
            heights = [max(number, _VISIBLE * most) if number else 0.0 for number in numbers]
            axes.bar(edges[:-1], heights, widths, bottom, align="edge", color=_COLOURS[fate], linewidth=0)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        if scale.octave:
            axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(2, numticks=8) if scale.octave else MaxNLocator(7, integer=scale.whole))
        axes.xaxis.set_major_formatter(lambda value, _: readable(value, scale.unit))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlim(edges[0], edges[-1])
        axes.grid(axis="y", alpha=0.3)
        for limit in found.limits:
            _mark(axes, found, limit)

    return svg_chart(
        (4.2, 1.7), onto, text_color=_TEXT, axes_edgecolor=_TEXT, xtick_color=_TEXT, ytick_color=_TEXT,
        axes_spines_left=False,
    )  # fmt: skip


def _mark(axes: Axes, found: Histogram, limit: Limit) -> None:
    """A dashed line at a threshold; one beyond the chart is marked at its border with an arrow."""
    low, high = found.edges[0], found.edges[-1]
    # A bar of whole numbers is centred on its value, so the line is between the last kept value and the next.
    shift = 0.0 if not found.scale.whole else 0.5 if limit.keeps == "below" else -0.5
    place = min(max(limit.value + shift, low), high)
    text = limit.text(found.scale.unit)
    text = f"◂ {text}" if limit.value < low else f"{text} ▸" if limit.value > high else text
    first_half = found.scale.position(place) < (found.scale.position(low) + found.scale.position(high)) / 2
    axes.axvline(place, color=_MARK, linestyle="--", linewidth=1.2)
    axes.annotate(
        text, (place, 1), (4 if first_half else -4, 2), ("data", "axes fraction"), "offset points",
        ha="left" if first_half else "right", color=_MARK,
    )  # fmt: skip


def readable(value: float, unit: str = "") -> str:
    """A value as a person writes it: 1.5, 12,000, 64 K (bytes)."""
    if unit == "bytes":
        for size, letter in ((1 << 20, " M"), (1 << 10, " K")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def limits_of(options: Mapping[str, Any], histograms: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Limit]]:
    """The thresholds in the options of `collect` (as JSON), by the name of the histogram that shows them.

    For a scorer that keeps a fraction, the threshold is the lowest value kept, up to the width of a bin.
    """
    found: dict[str, list[Limit]] = {}
    for each in options.get("filters") or ():
        if each["kind"] == "image":
            found["short_side"] = _range(each.get("min_side"), None)
            found["long_side"] = _range(None, each.get("max_side"))
            found["aspect"] = _range(None, each.get("max_aspect"))
            found["bytes"] = _range(each.get("min_bytes"), each.get("max_bytes"))
        elif each["kind"] == "length":
            found |= {language: _range(*each[language]) for language in LANGUAGES if each.get(language)}
    for scorer in options.get("scores") or ():
        for name, fates in histograms.items():
            if name.startswith("score:"):
                found.setdefault(name, []).extend(_score_limits(scorer, name, fates))
    return found


def _score_limits(scorer: Mapping[str, Any], name: str, fates: Mapping[str, Mapping[str, int]]) -> Iterable[Limit]:
    stored = f"{scorer['kind']}-{scorer['name']}" if scorer.get("name") else scorer["kind"]
    scored, language = split(name)
    if scorer["kind"] == "agreement" and scored == stored:
        threshold = (scorer.get("threshold") or {}).get(language)
        if threshold is not None:
            yield Limit(threshold, "above")
        elif (scorer.get("keep") or {}).get(language) and (kept := fates.get(KEPT)):
            yield Limit(min(float(at) for at in kept), "above")
    elif scorer["kind"] == "prompts" and scored == stored:
        yield Limit(scorer["threshold"], "below")
    elif scorer["kind"] == "classifier":
        labels = (re.sub(r"[^\w]+", "-", label.lower()).strip("-") for label in scorer["reject"])
        if scored in {f"{stored}-{label}" for label in labels}:
            yield Limit(scorer["threshold"], "above" if scorer.get("below") else "below")


def _range(minimum: float | None, maximum: float | None) -> list[Limit]:
    limits = [Limit(minimum, "above")] if minimum else []
    return limits if maximum is None else [*limits, Limit(maximum, "below")]
