"""Charts of results as SVG files: bars per data set, Chinese against English, curves of linear probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcclip_cli.eval.registry import base_name
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.html import COLOURS, svg_chart

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from dcclip_cli.eval.report import Table

_MARKERS = "osD^vP*"
_VALUED = 80  # bars that have their value written next to them, at most
_LONGEST = 64  # characters in a row of the legend, at most
_NAMED = 60  # points that have the name of their data set next to them, at most


def bars(found: Table) -> bytes:
    """Each data set's metric, a bar for each model and language."""
    columns = [(at, column) for at, column in enumerate(found.columns) if column.language]
    models = list(dict.fromkeys(column.model for _, column in columns))
    both = len({column.language for _, column in columns}) > 1
    valued = len(columns) * len(found.rows) <= _VALUED

    def draw(axes: Axes) -> None:
        height = 0.8 / len(columns)
        for number, (at, column) in enumerate(columns):
            light = both and column.language == "zh"  # English in full colour
            there = [(row, 100 * value) for row, one in enumerate(found.rows) if (value := one.values[at]) is not None]
            drawn = axes.barh(
                [row + height * number for row, _ in there], [value for _, value in there], height * 0.9,
                color=_colour(models.index(column.model), light), label=f"{column.model} {column.language}",
            )  # fmt: skip
            if valued:
                axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=7, color="#555555")
        middle = 0.4 - height / 2
        axes.set_yticks([row + middle for row in range(len(found.rows))], [row.name for row in found.rows])
        axes.tick_params("y", length=0)
        axes.set_ylim(len(found.rows) - 0.1, -0.5 * height - 0.1)
        axes.set_xlim(0, 100)
        axes.set_xlabel("per cent, each data set's own metric")
        axes.xaxis.grid(True, alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda one: labels[one].rpartition(" ")[2])  # a column for each language
        _legend(axes, [handles[one] for one in order], [labels[one] for one in order], 2 if both else 1)

    inches = 0.9 + ((0.17 if valued else 0.1) * len(columns) + 0.08) * len(found.rows) + 0.18 * len(models)
    return svg_chart((8.5, inches), draw, "white")


def _legend(axes: Axes, handles: list[Artist], labels: list[str], columns: int) -> None:
    """A legend above the axes; of long names, such as those with a path, the end is kept."""
    shown = [label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}" for label in labels]
    columns = max(1, min(columns, len(shown), _LONGEST // max(map(len, shown))))
    axes.legend(handles, shown, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False)


def _colour(model: int, light: bool) -> tuple[float, ...]:
    """A model's colour, or half of it with half of white."""
    from matplotlib.colors import to_rgb

    return tuple((1 + part) / 2 if light else part for part in to_rgb(COLOURS[model % len(COLOURS)]))


@dataclass(frozen=True)
class _Point:
    """A model on a data set, in per cent."""

    model: int
    name: str
    en: float
    zh: float


def chinese_against_english(found: Table) -> bytes | None:
    """A point for each model and data set that was measured in both languages; None where there is none."""
    models = list(dict.fromkeys(column.model for column in found.columns))
    at = {(column.model, column.language): number for number, column in enumerate(found.columns)}
    points = []
    for row in found.rows:
        for number, model in enumerate(models):
            en, zh = (row.values[at[model, one]] if (model, one) in at else None for one in ("en", "zh"))
            if en is not None and zh is not None:
                points.append(_Point(number, row.name, 100 * en, 100 * zh))
    if not points:
        return None
    values = [value for point in points for value in (point.en, point.zh)]
    low, high = max(0, min(values) - 6) // 5 * 5, min(100, -(-(max(values) + 6) // 5) * 5)

    def draw(axes: Axes) -> None:
        axes.plot([low, high], [low, high], color="#999999", linewidth=1, linestyle="--", zorder=1)
        for number, model in enumerate(models):
            own = [point for point in points if point.model == number]
            axes.scatter(
                [point.en for point in own], [point.zh for point in own], s=36, color=COLOURS[number % len(COLOURS)],
                marker=_MARKERS[number // len(COLOURS) % len(_MARKERS)], label=model, linewidths=0, alpha=0.9,
            )  # fmt: skip
        if len(points) <= _NAMED:
            _name_points(axes, points, high - low)
        axes.set(
            xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="English, per cent", ylabel="Chinese, per cent"
        )
        axes.grid(True, alpha=0.3)
        _legend(axes, *axes.get_legend_handles_labels(), 3)

    return svg_chart((6.2, 6.4), draw, "white")


def _name_points(axes: Axes, points: Sequence[_Point], span: float) -> None:
    """Write each point's data set next to it where there is room, away from the diagonal if possible."""
    wide, high, gap = 0.0125 * span, 0.03 * span, 0.014 * span  # of a character of this size, and from the point
    taken = [(point.en - gap / 2, point.zh - gap / 2, point.en + gap / 2, point.zh + gap / 2) for point in points]
    for point in sorted(points, key=lambda one: (one.zh, one.en)):
        length = wide * len(point.name)
        left = point.en - gap, point.zh, "right", "center", point.en - gap - length, point.zh - high / 2
        right = point.en + gap, point.zh, "left", "center", point.en + gap, point.zh - high / 2
        above = point.en, point.zh + gap, "center", "bottom", point.en - length / 2, point.zh + gap
        below = point.en, point.zh - gap, "center", "top", point.en - length / 2, point.zh - gap - high
        sides = (right, below, left, above) if point.zh < point.en else (left, above, right, below)
        for x, y, horizontal, vertical, begin, low in sides:
            box = (begin, low, begin + length, low + high)
            if all(box[2] < one[0] or one[2] < box[0] or box[3] < one[1] or one[3] < box[1] for one in taken):
                taken.append(box)
                axes.text(x, y, point.name, fontsize=7, color="#444444", ha=horizontal, va=vertical)
                break


def probes(results: Sequence[EvalResult]) -> bytes | None:
    """Curves of linear probes over the training images per class; None where there are none."""
    curves: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for result in results:
        if result.task.startswith("linear probe"):
            name = base_name(result.dataset)
            shots = result.task.partition(", ")[2].removesuffix(" shots") or "all"
            spread = result.metrics.get(f"{result.metric}_std", 0.0)
            curves.setdefault((result.model, name), []).append((shots, result.value, spread))
    if not curves:
        return None

    def draw(axes: Axes) -> None:
        for number, ((model, name), points) in enumerate(curves.items()):
            axes.errorbar(
                [shots for shots, _, _ in points], [100 * value for _, value, _ in points],
                [100 * spread for _, _, spread in points],
                marker="o", capsize=3, color=COLOURS[number % len(COLOURS)], label=f"{model}, {name}",
            )  # fmt: skip
        axes.set_xlabel("training images per class")
        axes.set_ylabel("per cent")
        axes.grid(True, alpha=0.3)
        axes.legend(frameon=False)

    return svg_chart((8.5, 4), draw, "white")
