"""Tables, charts and the HTML report of results: languages side by side, weak classes, confusions,
wrong images.
"""

from __future__ import annotations

import csv
import io
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcclip_cli.core.errors import DcclipError, Message, translated
from dcclip_cli.core.files import atomic_write
from dcclip_cli.core.html import COLOURS, jpeg_thumbnail, svg_chart, write_page
from dcclip_cli.core.progress import Progress
from dcclip_cli.data.pair import Language
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.embedding import sample_indices
from dcclip_cli.eval.metrics import among_first, per_class
from dcclip_cli.eval.registry import base_name, classes_of
from dcclip_cli.eval.result import (
    MEAN,
    METRIC_NAMES,
    ZERO_SHOT,
    Column,
    EvalResult,
    Table,
    percent,
    save_results,
    table,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_LANGUAGES: dict[Language, str] = {"en": Message("English"), "zh": Message("Chinese")}
_SHOWN = 12  # weak classes, confusions and wrong images of each result, at most
_MATRIX = 20  # classes of a confusion matrix, at most
_MARKERS = "osD^vP*"
_VALUED = 80  # bars that have their value written next to them, at most
_LONGEST = 64  # characters in a row of the legend, at most
_NAMED = 60  # points that have the name of their data set next to them, at most


def markdown(scores: Table) -> str:
    """The table for a README or an issue, in per cent: a row for each model, the best of several
    in bold.
    """
    models = list(dict.fromkeys(column.model for column in scores.columns))
    in_order: tuple[Language | None, ...] = ("en", "zh", None)
    languages = [
        language
        for language in in_order
        if any(column.language == language for column in scores.columns)
    ]
    head = ["data set", "metric", "model", *(language or "zh - en" for language in languages)]
    lines = [head, ["---"] * 3 + ["---:"] * len(languages)]
    for row in scores.rows:
        values = dict(zip(scores.columns, row.values, strict=True))
        for model in models:
            cells = [text.replace("|", "\\|") for text in (row.name, row.metric, model)]
            for language in languages:
                value = values.get(Column(model, language))
                best = max(
                    (values.get(Column(rival, language)) or 0 for rival in models), default=0
                )
                is_best = (
                    len(models) > 1 and language is not None and percent(value) == percent(best)
                )  # as printed
                text = percent(value, language is None)
                cells.append(f"**{text}**" if is_best else text)
            lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(scores: Table) -> str:
    stream = io.StringIO()
    columns = scores.columns
    lines = [["data set", "metric", *(column.title for column in columns)]]
    lines += [
        [
            row.name,
            row.metric,
            *map(percent, row.values, (not column.language for column in columns)),
        ]
        for row in scores.rows
    ]
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def save_report(
    results: Sequence[EvalResult], datasets: Iterable[DataSet], folder: Path, progress: Progress
) -> None:
    """Write the results as JSON, and all of the folder as Markdown and CSV tables, charts, and
    report.html.
    """
    results = save_results(results, folder)
    for suffix, written in (("md", markdown), ("csv", comma_separated)):
        atomic_write(folder / f"table.{suffix}", written(table(results)))
    drawn = write_report(folder / "report.html", results, datasets)
    if not drawn:
        progress.say(Message("eval: charts need the package matplotlib: pip install matplotlib"))
    for name in ("bars", "zh-en"):
        if name in drawn:
            atomic_write(folder / f"{name}.svg", drawn[name])
        else:
            (folder / f"{name}.svg").unlink(missing_ok=True)  # of earlier results


def write_report(
    path: Path, results: Sequence[EvalResult], datasets: Iterable[DataSet] = ()
) -> dict[str, bytes]:
    """Write report.html, with wrong images of the `datasets` given; all else is in the results.
    Returns its charts.
    """
    by_name = {dataset.name: dataset for dataset in datasets}
    scores = table(results)
    charts = {"bars": bars(scores), "zh-en": chinese_against_english(scores)}
    drawn = {name: chart for name, chart in charts.items() if chart}
    means = zip(scores.columns, scores.mean.values, strict=True) if scores.mean else ()
    write_page(
        path,
        "dcclip_cli.eval",
        "report.html.j2",
        results=results,
        models=list(dict.fromkeys(result.label for result in results)),
        means={
            Message("{}, {}", column.model, _LANGUAGES[column.language]): mean
            for column, mean in means
            if mean and column.language
        },
        mean_name=MEAN,
        table=scores,
        charts={
            name: f"data:image/svg+xml;base64,{b64encode(chart).decode()}"
            for name, chart in drawn.items()
        },
        errors=[
            errors
            for result in results
            if (errors := errors_of(result, by_name.get(result.dataset)))
        ],
        languages=_LANGUAGES,
        metric_names=METRIC_NAMES,
        points=percent,
        one_thing=one_thing(results),
        markdown=markdown(scores),
        corrupt={result.dataset: result.corrupt for result in results if result.corrupt},
    )
    return drawn


def one_thing(results: Sequence[EvalResult]) -> dict[str, list[str]]:
    """By data set, the pairs of classes that are one thing in both languages: a score on them is a
    coin toss.
    """
    pairs_by_dataset = {}
    for result in results:
        class_texts = classes_of(result.dataset)
        pairs = class_texts.one_thing if class_texts else ()
        if (
            class_texts
            and pairs
            and result.task == ZERO_SHOT
            and result.metric in ("top1", "mean_per_class")
        ):
            names = [
                " / ".join(translations)
                for translations in zip(*class_texts.names.values(), strict=True)
            ]
            pairs_by_dataset[base_name(result.dataset)] = [
                f"{names[a]} = {names[b]}" for a, b in pairs
            ]
    return pairs_by_dataset


@dataclass(frozen=True)
class Errors:
    """The errors of one model on one data set in one language, as rows of the report's tables.

    `worst`: classes with the fraction of their `n` images that is right, and the most frequent
    wrong class; `confusions`: the number of images of class `truth` predicted as `guess`, and
    their fraction of the class; `matrix`: of few classes, the name of each and how many of its
    images are predicted as each class; `mistakes`: wrong images as JPEG files, with the rank of
    their class from 1.
    """

    result: EvalResult
    worst: list[dict[str, Any]]
    confusions: list[dict[str, Any]]
    matrix: dict[str, list[int]]
    mistakes: list[dict[str, Any]]


def errors_of(result: EvalResult, dataset: DataSet | None) -> Errors | None:
    """The errors of a result; None unless each image has one class. Without a data set no image is
    shown.
    """
    labels, ranks, guesses = (result.detail(name) for name in ("labels", "ranks", "predictions"))
    if labels is None or ranks is None or guesses is None:
        return None
    # of a tie, the first class is the guess
    names = result.class_names
    wrong = guesses != labels
    counts = np.bincount(labels, minlength=len(names))
    fractions = per_class(among_first(ranks, result.detail("ties"), 1), labels, len(names))
    confused = Counter(zip(labels[wrong].tolist(), guesses[wrong].tolist(), strict=True))
    by_count = sorted(confused.items(), key=lambda item: (-item[1], item[0]))
    # One image per class: the confusions list them all.
    predicted = (
        {truth: names[guess] for (truth, guess), _ in reversed(by_count)}
        if counts.max() > 1
        else {}
    )
    weak = [label for label in np.argsort(fractions, kind="stable").tolist() if label in predicted]
    worst = [
        {
            "name": names[label],
            "fraction": fractions[label],
            "n": int(counts[label]),
            "predicted": predicted[label],
        }
        for label in weak[:_SHOWN]
    ]
    confusions = [
        {"truth": names[truth], "guess": names[guess], "n": n, "fraction": n / int(counts[truth])}
        for (truth, guess), n in by_count[:_SHOWN]
    ]
    matrix: dict[str, list[int]] = {}
    if len(names) <= _MATRIX and counts.max() > 1:
        pairs = np.bincount(labels * len(names) + guesses, minlength=len(names) ** 2)
        rows = pairs.reshape(len(names), len(names)).tolist()
        matrix = dict(zip(names, rows, strict=True))
    errors = Errors(result, worst, confusions, matrix, [])
    if not dataset:
        return errors
    keys = dataset.images.keys
    indices = [
        index
        for index in sample_indices(len(keys), result.limit).tolist()
        if keys[index] not in result.corrupt
    ]
    if len(indices) != len(labels):
        return errors
    # A fixed random sample of wrong images, from as many classes as possible.
    count_by_class = Counter[int]()
    order = []
    for row in np.random.default_rng(0).permutation(np.flatnonzero(wrong)).tolist():
        count_by_class[int(labels[row])] += 1
        order.append((count_by_class[int(labels[row])], row))
    for _, row in sorted(order, key=lambda pair: pair[0])[:_SHOWN]:
        try:
            thumbnail = jpeg_thumbnail(dataset.images.load(indices[row]))
        except DcclipError:  # removed since
            continue
        texts = {
            "key": keys[indices[row]],
            "truth": names[labels[row]],
            "guess": names[guesses[row]],
        }
        errors.mistakes.append({**texts, "thumbnail": thumbnail, "rank": int(ranks[row]) + 1})
    return errors


# ---- charts, as SVG files


def bars(scores: Table) -> bytes:
    """Each data set's metric, a bar for each model and language."""
    columns = [(index, column) for index, column in enumerate(scores.columns) if column.language]
    models = list(dict.fromkeys(column.model for _, column in columns))
    both = len({column.language for _, column in columns}) > 1
    valued = len(columns) * len(scores.rows) <= _VALUED

    def draw(axes: Axes) -> None:
        from matplotlib.colors import to_rgb

        height = 0.8 / len(columns)
        for number, (index, column) in enumerate(columns):
            color: tuple[float, ...] = to_rgb(COLOURS[models.index(column.model) % len(COLOURS)])
            if (
                both and column.language == "zh"
            ):  # English in full colour, Chinese in half of it with half of white
                color = tuple((1 + part) / 2 for part in color)
            values = [row.values[index] for row in scores.rows]
            cells = [(row, 100 * value) for row, value in enumerate(values) if value is not None]
            drawn = axes.barh(
                [row + height * number for row, _ in cells], [value for _, value in cells], height * 0.9,
                color=color, label=f"{column.model} {column.language}",
            )  # fmt: skip
            if valued:
                axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=7, color="#555555")
        middle = 0.4 - height / 2
        axes.set_yticks(
            [row + middle for row in range(len(scores.rows))], [row.name for row in scores.rows]
        )
        axes.tick_params("y", length=0)
        axes.set_ylim(len(scores.rows) - 0.1, -0.5 * height - 0.1)
        axes.set_xlim(0, 100)
        axes.set_xlabel(translated(Message("per cent, metric of each data set")))
        axes.xaxis.grid(True, alpha=0.3)
        legend = zip(*axes.get_legend_handles_labels(), strict=True)
        entries = sorted(
            legend, key=lambda entry: entry[1].rpartition(" ")[2]
        )  # a column for each language
        _legend(
            axes,
            [handle for handle, _ in entries],
            [label for _, label in entries],
            2 if both else 1,
        )

    inches = (
        0.9
        + ((0.17 if valued else 0.1) * len(columns) + 0.08) * len(scores.rows)
        + 0.18 * len(models)
    )
    return svg_chart((8.5, inches), draw)


def _legend(axes: Axes, handles: list[Artist], labels: list[str], columns: int) -> None:
    """A legend above the axes; of long names, such as those with a path, the end is kept."""
    shown = [label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}" for label in labels]
    columns = max(1, min(columns, len(shown), _LONGEST // max(map(len, shown))))
    axes.legend(
        handles, shown, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False
    )


@dataclass(frozen=True)
class _Point:
    """A model on a data set, in per cent."""

    model: int
    name: str
    en: float
    zh: float


def chinese_against_english(scores: Table) -> bytes | None:
    """A point for each model and data set that was measured in both languages; None where there is
    none.
    """
    models = list(dict.fromkeys(column.model for column in scores.columns))
    at = {(column.model, column.language): number for number, column in enumerate(scores.columns)}
    points = []
    for row in scores.rows:
        for number, model in enumerate(models):
            en, zh = (
                row.values[at[model, language]] if (model, language) in at else None
                for language in ("en", "zh")
            )
            if en is not None and zh is not None:
                points.append(_Point(number, row.name, 100 * en, 100 * zh))
    if not points:
        return None
    values = [value for point in points for value in (point.en, point.zh)]
    low = max(0, min(values) - 6) // 5 * 5
    high = min(100, -(-(max(values) + 6) // 5) * 5)

    def draw(axes: Axes) -> None:
        axes.plot([low, high], [low, high], color="#999999", linewidth=1, linestyle="--", zorder=1)
        for number, model in enumerate(models):
            shown = [point for point in points if point.model == number]
            axes.scatter(
                [point.en for point in shown], [point.zh for point in shown], label=model, linewidths=0, alpha=0.9,
                s=36, color=COLOURS[number % len(COLOURS)], marker=_MARKERS[number // len(COLOURS) % len(_MARKERS)],
            )  # fmt: skip
        if len(points) <= _NAMED:
            _name_points(axes, points, high - low)
        labels = (
            translated(Message("English, per cent")),
            translated(Message("Chinese, per cent")),
        )
        axes.set(
            xlim=(low, high), ylim=(low, high), aspect="equal", xlabel=labels[0], ylabel=labels[1]
        )
        axes.grid(True, alpha=0.3)
        _legend(axes, *axes.get_legend_handles_labels(), 3)

    return svg_chart((6.2, 6.4), draw)


def _name_points(axes: Axes, points: Sequence[_Point], span: float) -> None:
    """Write each point's data set next to it where there is room, away from the diagonal if
    possible.
    """
    # of a character of this size, and from the point
    wide = 0.0125 * span
    high = 0.03 * span
    gap = 0.014 * span
    occupied = [
        (point.en - gap / 2, point.zh - gap / 2, point.en + gap / 2, point.zh + gap / 2)
        for point in points
    ]
    for point in sorted(points, key=lambda point: (point.zh, point.en)):
        length = wide * len(point.name)
        to_left = (
            point.en - gap,
            point.zh,
            "right",
            "center",
            point.en - gap - length,
            point.zh - high / 2,
        )
        to_right = point.en + gap, point.zh, "left", "center", point.en + gap, point.zh - high / 2
        above = point.en, point.zh + gap, "center", "bottom", point.en - length / 2, point.zh + gap
        below = (
            point.en,
            point.zh - gap,
            "center",
            "top",
            point.en - length / 2,
            point.zh - gap - high,
        )
        sides = (
            (to_right, below, to_left, above)
            if point.zh < point.en
            else (to_left, above, to_right, below)
        )
        for x, y, horizontal, vertical, begin, low in sides:
            end = begin + length
            top = low + high
            if all(end < x0 or x1 < begin or top < y0 or y1 < low for x0, y0, x1, y1 in occupied):
                occupied.append((begin, low, end, top))
                axes.text(x, y, point.name, fontsize=7, color="#444444", ha=horizontal, va=vertical)
                break
