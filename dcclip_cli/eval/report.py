"""The report of an evaluation: tables, charts, weak classes, confusions and wrong images, as one HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.embedding import sample_indices
from dcclip_cli.eval.metrics import per_class
from dcclip_cli.eval.registry import base_name
from dcclip_cli.eval.result import EvalResult, save_results
from dcclip_cli.eval.tables import METRIC_NAMES, Table, latex, markdown, percent, table
from dcclip_cli.html import COLOURS, jpeg_thumbnail, svg_chart, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LANGUAGES: dict[Language, str] = {"en": "English", "zh": "Chinese"}
_SHOWN = 12  # weak classes, confusions and wrong images of each result, at most


def save_report(results: Sequence[EvalResult], datasets: Iterable[DataSet], folder: Path) -> None:
    """Write the results as JSON, as tables in Markdown and LaTeX, and as report.html."""
    save_results(results, folder)
    (folder / "table.md").write_text(markdown(results), "utf-8")
    (folder / "table.tex").write_text(latex(results), "utf-8")
    write_report(folder / "report.html", results, datasets)


def write_report(path: Path, results: Sequence[EvalResult], datasets: Iterable[DataSet] = ()) -> None:
    """Write report.html, with wrong images of the `datasets` given; all else is in the results."""
    by_name = {dataset.name: dataset for dataset in datasets}
    found = table(results)
    means = zip(found.columns, found.mean.values, strict=True) if found.mean else ()
    write_page(
        path,
        "dcclip_cli.eval",
        "report.html.j2",
        results=results,
        models=list(dict.fromkeys(result.model for result in results)),
        means={f"{one.model}, {_LANGUAGES[one.language]}": mean for one, mean in means if mean and one.language},
        table=found,
        overview=_overview(found),
        probes=_probes(results),
        errors=[errors for result in results if (errors := errors_of(result, by_name))],
        languages=_LANGUAGES,
        metric_names=METRIC_NAMES,
        points=percent,
        markdown=markdown(results),
        latex=latex(results),
        corrupt={result.dataset: result.corrupt for result in results if result.corrupt},
    )


@dataclass(frozen=True)
class WeakClass:
    """A class, the fraction of its `n` images that are right, and the most frequent wrong class."""

    name: str
    fraction: float
    n: int
    predicted: str


@dataclass(frozen=True)
class Confusion:
    """The number of images of class `truth` predicted as `guess`, and their fraction of the class."""

    truth: str
    guess: str
    n: int
    fraction: float


@dataclass(frozen=True)
class Mistake:
    """A wrong image, as a JPEG file, its class, the predicted class, and the rank of its class, from 1."""

    key: str
    thumbnail: bytes
    truth: str
    guess: str
    rank: int


@dataclass(frozen=True)
class Errors:
    """The errors of one model on one data set in one language."""

    result: EvalResult
    worst: list[WeakClass]
    confusions: list[Confusion]
    mistakes: list[Mistake]


def errors_of(result: EvalResult, datasets: Mapping[str, DataSet]) -> Errors | None:
    """The errors of a result; None unless each image has one class. Wrong images are shown of the `datasets` given."""
    labels, ranks, guesses = (result.detail(name) for name in ("labels", "ranks", "predictions"))
    if labels is None or ranks is None or guesses is None:
        return None
    names, wrong = result.class_names, ranks > 0
    counts = np.bincount(labels, minlength=len(names))
    fractions = per_class(ranks, labels, len(names))
    confused = Counter(zip(labels[wrong].tolist(), guesses[wrong].tolist(), strict=True))
    by_count = sorted(confused.items(), key=lambda item: (-item[1], item[0]))
    predicted = {truth: guess for (truth, guess), _ in reversed(by_count)}
    weak = [number for number in np.argsort(fractions, kind="stable").tolist() if number in predicted]
    if counts.max() == 1:  # one image per class: the confusions list them all
        weak = []
    return Errors(
        result,
        [
            WeakClass(names[one], float(fractions[one]), int(counts[one]), names[predicted[one]])
            for one in weak[:_SHOWN]
        ],
        [Confusion(names[truth], names[guess], n, n / int(counts[truth])) for (truth, guess), n in by_count[:_SHOWN]],
        _mistakes(result, labels, ranks, guesses, datasets.get(result.dataset)),
    )


def _mistakes(
    result: EvalResult, labels: np.ndarray, ranks: np.ndarray, guesses: np.ndarray, dataset: DataSet | None
) -> list[Mistake]:
    """A fixed random sample of wrong images, from as many classes as possible."""
    if dataset is None:
        return []
    rows = _measured(result, dataset)
    if len(rows) != len(labels):
        return []
    wrong = np.random.default_rng(0).permutation(np.flatnonzero(ranks > 0))
    seen: dict[int, int] = {}
    order = []
    for row in wrong.tolist():
        seen[int(labels[row])] = seen.get(int(labels[row]), 0) + 1
        order.append((seen[int(labels[row])], row))
    found = []
    for _, row in sorted(order, key=lambda one: one[0])[:_SHOWN]:
        try:
            thumbnail = jpeg_thumbnail(dataset.images.load(int(rows[row])))
        except DcclipError:  # removed since
            continue
        names = result.class_names
        truth, guess = names[int(labels[row])], names[int(guesses[row])]
        found.append(Mistake(str(dataset.images.keys[int(rows[row])]), thumbnail, truth, guess, int(ranks[row]) + 1))
    return found


def _measured(result: EvalResult, dataset: DataSet) -> np.ndarray:
    """The numbers of the images in a result."""
    wanted = sample_indices(len(dataset.images), result.limit)
    return np.asarray([one for one in wanted.tolist() if str(dataset.images.keys[one]) not in result.corrupt])


def _overview(found: Table) -> str:
    """Bars of each data set's metric for each model and language, as a data URL."""
    columns = [(at, column) for at, column in enumerate(found.columns) if column.language]
    models = list(dict.fromkeys(column.model for _, column in columns))

    def draw(axes: Axes) -> None:
        height = 0.8 / len(columns)
        for number, (at, column) in enumerate(columns):
            colour = COLOURS[models.index(column.model) % len(COLOURS)]
            positions = [row + height * number for row in range(len(found.rows))]
            values = [100 * (row.values[at] or 0) for row in found.rows]
            hatch = "////" if column.language == "zh" else None  # English in full colour
            label = f"{column.model} {column.language}"
            axes.barh(
                positions, values, height * 0.92, color=colour, alpha=0.55 if hatch else 1, hatch=hatch, label=label,
                edgecolor="white", linewidth=0,
            )  # fmt: skip
        middle = 0.4 - height / 2
        axes.set_yticks([row + middle for row in range(len(found.rows))], [row.name for row in found.rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("per cent, each data set's own metric")
        axes.xaxis.grid(True, alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)

    return svg_chart((8.5, 1.4 + 0.26 * len(found.rows) * max(1, len(columns) / 2)), draw)


def _probes(results: Sequence[EvalResult]) -> str | None:
    """Curves of linear probes over the training images per class, as a data URL; None where there are none."""
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

    return svg_chart((8.5, 4), draw)
