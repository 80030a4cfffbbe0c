"""How is a histogram drawn? As bars in the units of an SVG drawing, kept and dropped one on the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dcclip_cli.curation.report.axis import readable, round_counts, round_values
from dcclip_cli.curation.report.scales import Scale, scale_of
from dcclip_cli.curation.report.statistics import KEPT

WIDTH, HEIGHT = 360.0, 120.0  # of the bars' area
_BARS = 48  # at most
_TAIL = 0.01  # of all that is measured, at either end, may share the outermost bars
_VISIBLE = 1.5  # height of the smallest part of a bar


@dataclass(frozen=True)
class Limit:
    """A threshold: values `above` or `below` it, the value itself included, are kept."""

    value: float
    keeps: Literal["above", "below"]


@dataclass(frozen=True)
class Part:
    """A coloured piece of a bar; `fate` is `kept`, `this` (dropped by a rule on this quantity) or `other`."""

    fate: str
    y: float
    height: float


@dataclass(frozen=True)
class Bar:
    """One bar and what it says when a person points at it."""

    x: float
    width: float
    parts: tuple[Part, ...]
    title: str


@dataclass(frozen=True)
class Mark:
    """A threshold's line, and the text above it."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Chart:
    """All that the template needs to draw a histogram."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]
    totals: Mapping[str, int]  # fate -> how many
    grid: tuple[tuple[float, str], ...]  # lines across at round numbers, and what they say


def chart(name: str, fates: Mapping[str, Mapping[str, int]], limits: Iterable[Limit] = ()) -> Chart | None:
    """The drawing of one of the histograms in `Statistics.as_dict`; None if nothing was measured."""
    scale = scale_of(name)
    parts: dict[str, list[int]] = {fate: [0] * scale.bins for fate in ("kept", "this", "other")}
    for reason, bins in fates.items():
        fate = "kept" if reason == KEPT else "this" if reason in scale.reasons else "other"
        for at, number in bins.items():
            parts[fate][scale.number(at)] += number
    sums = [sum(numbers) for numbers in zip(*parts.values(), strict=True)]
    if not any(sums):
        return None
    limits = list(limits)
    first, last = _span(sums, [_edge(scale, limit) for limit in limits])
    step = math.ceil((last - first) / _BARS)
    first -= first % step
    count = math.ceil((last - first) / step)
    heights = {fate: _grouped(numbers, first, step, count) for fate, numbers in parts.items()}
    most = max(sum(one) for one in zip(*heights.values(), strict=True))
    width = WIDTH / count
    bars = []
    for number in range(count):
        values = {fate: heights[fate][number] for fate in heights}
        if any(values.values()):
            title = f"{_interval(scale, first + number * step, step, number, count, sums)}: {_said(values)}"
            bars.append(Bar(number * width, width, _stack(values, most), title))
    return Chart(
        title=scale.title,
        unit=scale.unit,
        bars=tuple(bars),
        ticks=tuple(_ticks(scale, first, first + count * step, any(sums[first + count * step :]))),
        marks=tuple(_mark(scale, limit, first, count * step) for limit in limits),
        totals={fate: sum(numbers) for fate, numbers in parts.items()},
        grid=tuple((HEIGHT * (1 - value / most), f"{value:,}") for value in round_counts(most)),
    )


def _span(sums: Sequence[int], edges: Sequence[float]) -> tuple[int, int]:
    """The bins to draw, first and one past the last: nearly all that is measured, and thresholds that are not far."""
    total, seen, first, last = sum(sums), 0, 0, len(sums)
    filled = [at for at, number in enumerate(sums) if number]
    for at in filled:
        if seen <= total * _TAIL:
            first = at
        if seen < total * (1 - _TAIL):
            last = at + 1
        seen += sums[at]
    room = max(8, last - first)
    for edge in edges:
        if first - 2 * room <= edge <= last + 2 * room:
            first, last = min(first, math.floor(edge) - 1), max(last, math.ceil(edge) + 1)
    if last - first < 8:  # a few bars as wide as the whole drawing look like something else
        first, last = first - (8 - last + first) // 2, first + 8
    first = max(0, first)
    return first, min(len(sums), max(last, first + 8))


def _grouped(numbers: Sequence[int], first: int, step: int, count: int) -> list[int]:
    bars = [sum(numbers[first + at * step : first + (at + 1) * step]) for at in range(count)]
    bars[0] += sum(numbers[:first])
    bars[-1] += sum(numbers[first + count * step :])
    return bars


def _stack(values: Mapping[str, int], most: int) -> tuple[Part, ...]:
    parts, y = [], HEIGHT
    for fate, number in values.items():
        if number:
            height = max(_VISIBLE, HEIGHT * number / most)
            y -= height
            parts.append(Part(fate, y, height))
    return tuple(parts)


def _interval(scale: Scale, begin: int, step: int, number: int, count: int, sums: Sequence[int]) -> str:
    low, high = scale.edge(begin), scale.edge(begin + step)
    unit = f" {scale.unit}" if scale.unit else ""
    if (number == count - 1 and any(sums[begin + step :])) or begin + step >= scale.bins:
        return f"{readable(low, scale)}{unit} and more"
    if number == 0 and any(sums[:begin]):
        return f"less than {readable(high, scale)}{unit}"
    if scale.whole:
        return f"{readable(low, scale)}{unit}" if step == 1 else f"{low:g} to {high - 1:g}{unit}"
    return f"{readable(low, scale)} to {readable(high, scale)}{unit}"


def _said(values: Mapping[str, int]) -> str:
    words = {"kept": "kept", "this": "dropped for it", "other": "dropped for something else"}
    return ", ".join(f"{number:,} {words[fate]}" for fate, number in values.items() if number)


def _edge(scale: Scale, limit: Limit) -> float:
    """Where a threshold stands, in bins: after the last whole number that is kept."""
    return scale.position(limit.value) + (1 if scale.whole and limit.keeps == "below" else 0)


def _mark(scale: Scale, limit: Limit, first: int, bins: int) -> Mark:
    """The line at a threshold; one that lies beyond the drawing stands at its border and points outwards."""
    share = (_edge(scale, limit) - first) / bins
    text = ("≥ " if limit.keeps == "above" else "≤ ") + readable(limit.value, scale)
    text = f"◂ {text}" if share < 0 else f"{text} ▸" if share > 1 else text
    return Mark(min(max(share, 0.0), 1.0) * WIDTH, text, "start" if share < 0.5 else "end")


def _ticks(scale: Scale, first: int, last: int, more: bool) -> Iterable[tuple[float, str]]:
    """Positions and texts of five to eight round numbers; `more` where the last bar has what lies beyond it."""
    middle = 0.5 if scale.whole else 0.0
    for value in round_values(scale, first, last):
        share = (scale.position(value) + middle - first) / (last - first)
        if 0 <= share <= (0.86 if more else 1):
            yield share * WIDTH, readable(value, scale)
    if more:
        yield WIDTH * 0.97, "more"
