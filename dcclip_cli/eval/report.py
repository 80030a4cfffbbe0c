"""Tables and the HTML report of results: languages side by side, charts, weak classes, confusions and wrong images."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message, joined
from dcclip_cli.eval import charts, registry
from dcclip_cli.eval.compare import unlike
from dcclip_cli.eval.dataset import DataSet
from dcclip_cli.eval.embedding import sample_indices
from dcclip_cli.eval.leaderboards import immich
from dcclip_cli.eval.metrics import per_class
from dcclip_cli.eval.registry import ELEVATER, SUFFIX, base_name
from dcclip_cli.eval.result import EvalResult, save_results
from dcclip_cli.files import atomic_write
from dcclip_cli.html import jpeg_thumbnail, svg_data_url, write_page
from dcclip_cli.progress import Progress

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": Message("mean per class"),
    "map11": Message("11-point mAP"),
    "map": "mAP",
    "roc_auc": "ROC AUC",
    **{f"{what}_recall@{k}": f"{what} R@{k}" for what in ("image", "text") for k in (1, 5, 10)},
    "mean_recall": Message("mean recall"),
}
MEAN = Message("ELEVATER, mean over 20")
_ZERO_SHOT = "zero-shot classification"
_LANGUAGES: dict[Language, str] = {"en": Message("English"), "zh": Message("Chinese")}
_SHOWN = 12  # weak classes, confusions and wrong images of each result, at most


@dataclass(frozen=True)
class Column:
    """A model in a language, or the gap between its Chinese and its English results, in points."""

    model: str
    language: Language | None

    @property
    def is_gap(self) -> bool:
        return self.language is None

    @property
    def title(self) -> str:
        return f"{self.model} {self.language or 'zh - en'}"


@dataclass(frozen=True)
class Row:
    """A data set on a task, in all languages; `values` are in 0..1 (gaps: -1..1), None where there is no result."""

    name: str
    metric: str
    values: tuple[float | None, ...]
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """All results; the last of the `rows` is ELEVATER's `mean`, if there is one."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    mean: Row | None = None


def table(results: Sequence[EvalResult]) -> Table:
    """All results, in their order; with ELEVATER's mean where a model has all twenty."""
    by_row: dict[str, list[EvalResult]] = defaultdict(list)
    for result in results:
        name = base_name(result.dataset) + (", in part" if result.partial else "")
        by_row[name if result.task in (_ZERO_SHOT, "retrieval") else f"{name}, {result.task}"].append(result)
    columns = [column for model in dict.fromkeys(one.model for one in results) for column in _columns(model, by_row)]
    rows = []
    for name, several in by_row.items():
        values = {(one.model, one.language): one.value for one in several}
        metric = METRIC_NAMES.get(several[0].metric, several[0].metric)
        rows.append(Row(name, metric, _across(columns, lambda *key: values.get(key)), _remark(several)))  # noqa: B023
    means = _across(columns, lambda *key: elevater_mean(results, *key))
    mean = Row(MEAN, Message("their own"), means) if any(value is not None for value in means) else None
    return Table(tuple(columns), (*rows, mean) if mean else tuple(rows), mean)


def _columns(model: str, by_row: Mapping[str, Sequence[EvalResult]]) -> list[Column]:
    languages = [{one.language for one in several if one.model == model} for several in by_row.values()]
    columns = [Column(model, language) for language in SUFFIX if any(language in several for several in languages)]
    return [*columns, Column(model, None)] if any(len(several) == 2 for several in languages) else columns


def _across(columns: Sequence[Column], value_of: Callable[[str, Language], float | None]) -> tuple[float | None, ...]:
    """The value of each column, and in a gap column Chinese minus English."""

    def cell(column: Column) -> float | None:
        if column.language:
            return value_of(column.model, column.language)
        en, zh = value_of(column.model, "en"), value_of(column.model, "zh")
        return None if en is None or zh is None else zh - en

    return tuple(map(cell, columns))


def _remark(here: Sequence[EvalResult]) -> str:
    sample = Message("a sample of {:,} images", here[0].n) if any(result.limit for result in here) else ""
    corrupt = max(len(result.corrupt) for result in here)
    alike = max(sum(map(len, result.indistinct)) for result in here)
    known = registry.SETS.get(base_name(here[0].dataset).replace("-", "_"))
    gap = prompts.read(registry.prompts_of(known)).gap_remark if known and known.classes else ""
    first = {result.language: result for result in reversed(here)}
    differing = {label for result in here for label in unlike(first[result.language], result)}
    remarks = (
        here[0].partial,
        Message("{} differ: do not compare", " and ".join(sorted(differing))) if differing else "",
        gap if len({result.language for result in here}) > 1 else "",
        sample,
        Message("{:,} images cannot be read", corrupt) if corrupt else "",
        Message("{} classes are read alike", alike) if alike else "",
        *_with_plain_names(here),
    )
    return joined(", ", filter(None, remarks))


def _with_plain_names(here: Sequence[EvalResult]) -> list[str]:
    """What each model has with the plain names of a language, in the order of the results."""
    by_names: dict[str, list[str]] = defaultdict(list)
    for result in here:
        if result.plain_names:
            by_names[", ".join(result.plain_names.values())].append(percent(result.plain_value))
    return [f"with {names} {', '.join(values)} %" for names, values in by_names.items()]


def one_thing(results: Sequence[EvalResult]) -> dict[str, list[str]]:
    """By data set, the pairs of classes that are one thing in both languages: a score on them is a coin toss."""
    found = {}
    for result in results:
        known = registry.SETS.get(base_name(result.dataset).replace("-", "_"))
        if known and known.classes and result.task == _ZERO_SHOT and result.metric in ("top1", "mean_per_class"):
            about = prompts.read(registry.prompts_of(known))
            pairs = [
                [" / ".join(names[at] for names in about.names.values()) for at in pair] for pair in about.one_thing
            ]
            if pairs:
                found[known.label] = [" = ".join(pair) for pair in pairs]
    return found


def _immich(results: Sequence[EvalResult]) -> dict[Language, list[immich.Standing]]:
    """By language, immich's table with the models that have its metric."""
    own: dict[Language, dict[str, immich.ImmichMetric]] = defaultdict(dict)
    for result in results:
        if result.immich:
            own[result.language][result.model] = result.immich
    return {language: immich.standings(language, models) for language, models in own.items()}


def elevater_mean(results: Sequence[EvalResult], model: str, language: Language) -> float | None:
    """The mean over ELEVATER's twenty data sets; None unless each of them was measured in full."""
    wanted = {known.label + SUFFIX[language] for known in ELEVATER}
    found = {
        result.dataset: result.value
        for result in results
        if result.model == model
        and result.dataset in wanted
        and not (result.limit or result.partial)
        and result.task == _ZERO_SHOT
    }
    return float(np.mean(list(found.values()))) if len(found) == len(wanted) else None


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as papers print it: 59.6, or +1.2 for a difference."""
    return "" if value is None else f"{100 * value:{'+' if signed else ''}.1f}"


def _cells(found: Table) -> list[list[str]]:
    """The head and the rows of a printed table, in per cent."""
    columns = found.columns
    return [["data set", "metric", *(column.title for column in columns)]] + [
        [row.name, row.metric, *map(percent, row.values, (column.is_gap for column in columns))] for row in found.rows
    ]


def markdown(found: Table) -> str:
    """The table for a README or an issue, in per cent."""
    head, *rows = _cells(found)
    lines = [head, ["---", "---", *["---:"] * len(found.columns)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def latex(found: Table) -> str:
    """The table for a paper, in per cent; it needs the package booktabs, and one for Chinese if names contain any."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escapes = str.maketrans(special | {char: "\\" + char for char in "&%$#_{}"})
    head, *rows = (" & ".join(cell.translate(escapes) for cell in line) + r" \\" for line in _cells(found))
    if found.mean:
        rows.insert(-1, r"\midrule")
    begin = rf"\begin{{tabular}}{{ll{'r' * len(found.columns)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""])


def comma_separated(found: Table) -> str:
    """The table for a spreadsheet, in per cent."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(_cells(found))
    return stream.getvalue()


def save_report(results: Sequence[EvalResult], datasets: Iterable[DataSet], folder: Path, progress: Progress) -> None:
    """Write the results as JSON, as tables in Markdown, LaTeX and CSV, as charts, and as report.html."""
    save_results(results, folder)
    found = table(results)
    atomic_write(folder / "table.md", markdown(found))
    atomic_write(folder / "table.tex", latex(found))
    atomic_write(folder / "table.csv", comma_separated(found))
    drawn = write_report(folder / "report.html", results, datasets)
    if not drawn:
        progress.say(Message("eval: no charts, which need the package matplotlib: pip install matplotlib"))
    for name in ("bars", "zh-en"):
        if name in drawn:
            atomic_write(folder / f"{name}.svg", drawn[name])
        else:
            (folder / f"{name}.svg").unlink(missing_ok=True)  # of earlier results


def write_report(path: Path, results: Sequence[EvalResult], datasets: Iterable[DataSet] = ()) -> dict[str, bytes]:
    """Write report.html, with wrong images of the `datasets` given; all else is in the results. Returns its charts."""
    by_name = {dataset.name: dataset for dataset in datasets}
    found = table(results)
    made = (charts.bars(found), charts.chinese_against_english(found), charts.probes(results))
    drawn = {name: chart for name, chart in zip(("bars", "zh-en", "probes"), made, strict=True) if chart}
    means = zip(found.columns, found.mean.values, strict=True) if found.mean else ()
    write_page(
        path,
        "dcclip_cli.eval",
        "report.html.j2",
        results=results,
        models=list(dict.fromkeys(result.model for result in results)),
        means={
            Message("{}, {}", one.model, _LANGUAGES[one.language]): mean for one, mean in means if mean and one.language
        },
        mean_name=MEAN,
        table=found,
        charts={name: svg_data_url(chart) for name, chart in drawn.items()},
        errors=[one for result in results if (one := errors_of(result, by_name.get(result.dataset)))],
        languages=_LANGUAGES,
        metric_names=METRIC_NAMES,
        points=percent,
        one_thing=one_thing(results),
        immich=_immich(results),
        immich_caveat=immich.CAVEAT,
        markdown=markdown(found),
        latex=latex(found),
        corrupt={result.dataset: result.corrupt for result in results if result.corrupt},
    )
    return drawn


@dataclass(frozen=True)
class Errors:
    """The errors of one model on one data set in one language, as rows of the report's tables.

    `worst`: classes with the fraction of their `n` images that is right, and the most frequent wrong class;
    `confusions`: the number of images of class `truth` predicted as `guess`, and their fraction of the class;
    `mistakes`: wrong images as JPEG files, with the rank of their class from 1.
    """

    result: EvalResult
    worst: list[dict[str, Any]]
    confusions: list[dict[str, Any]]
    mistakes: list[dict[str, Any]]


def errors_of(result: EvalResult, dataset: DataSet | None) -> Errors | None:
    """The errors of a result; None unless each image has one class. Without a data set no image is shown."""
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
    worst = [
        {"name": names[one], "fraction": fractions[one], "n": int(counts[one]), "predicted": names[predicted[one]]}
        for one in weak[:_SHOWN]
    ]
    confusions = [
        {"truth": names[truth], "guess": names[guess], "n": n, "fraction": n / int(counts[truth])}
        for (truth, guess), n in by_count[:_SHOWN]
    ]
    return Errors(result, worst, confusions, _mistakes(result, labels, ranks, guesses, dataset) if dataset else [])


def _mistakes(
    result: EvalResult, labels: np.ndarray, ranks: np.ndarray, guesses: np.ndarray, dataset: DataSet
) -> list[dict[str, Any]]:
    """A fixed random sample of wrong images, from as many classes as possible."""
    keys, names = dataset.images.keys, result.class_names
    indices = [one for one in sample_indices(len(keys), result.limit).tolist() if keys[one] not in result.corrupt]
    if len(indices) != len(labels):
        return []
    seen = Counter[int]()
    order = []
    for row in np.random.default_rng(0).permutation(np.flatnonzero(ranks > 0)).tolist():
        seen[int(labels[row])] += 1
        order.append((seen[int(labels[row])], row))
    found = []
    for _, row in sorted(order, key=lambda one: one[0])[:_SHOWN]:
        try:
            thumbnail = jpeg_thumbnail(dataset.images.load(indices[row]))
        except DcclipError:  # removed since
            continue
        texts = {"key": keys[indices[row]], "truth": names[labels[row]], "guess": names[guesses[row]]}
        found.append({**texts, "thumbnail": thumbnail, "rank": int(ranks[row]) + 1})
    return found
