"""Result tables: data sets in rows, models and languages in columns; also as Markdown and LaTeX."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dcclip_cli.data.pair import Language
from dcclip_cli.eval.registry import ELEVATER, SUFFIX, base_name
from dcclip_cli.eval.result import EvalResult

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "map11": "11-point mAP",
    "map": "mAP",
    "roc_auc": "ROC AUC",
    "image_recall@1": "image R@1",
    "image_recall@5": "image R@5",
    "image_recall@10": "image R@10",
    "text_recall@1": "text R@1",
    "text_recall@5": "text R@5",
    "text_recall@10": "text R@10",
    "mean_recall": "mean recall",
}
MEAN = "ELEVATER, mean over 20"
_ZERO_SHOT = "zero-shot classification"


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


def row_name(result: EvalResult) -> str:
    """The data set's name without its language, with the task where it is not the default one."""
    name = base_name(result.dataset)
    return name if result.task in (_ZERO_SHOT, "retrieval") else f"{name}, {result.task}"


def table(results: Sequence[EvalResult]) -> Table:
    """All results, in their order; with ELEVATER's mean where a model has all twenty."""
    by_row: dict[str, list[EvalResult]] = {}
    for result in results:
        by_row.setdefault(row_name(result), []).append(result)
    columns = [column for model in dict.fromkeys(one.model for one in results) for column in _columns(model, by_row)]
    rows = []
    for name, several in by_row.items():
        values = {(one.model, one.language): one.value for one in several}
        metric = METRIC_NAMES.get(several[0].metric, several[0].metric)
        rows.append(Row(name, metric, _across(columns, lambda *key: values.get(key)), _remark(several)))  # noqa: B023
    means = _across(columns, functools.partial(elevater_mean, results))
    mean = Row(MEAN, "their own", means) if any(value is not None for value in means) else None
    return Table(tuple(columns), (*rows, mean) if mean else tuple(rows), mean)


def elevater_mean(results: Sequence[EvalResult], model: str, language: Language) -> float | None:
    """The mean over ELEVATER's twenty data sets; None unless each of them was measured in full."""
    wanted = {known.label + SUFFIX[language] for known in ELEVATER}
    found = {
        result.dataset: result.value
        for result in results
        if result.model == model and result.dataset in wanted and result.limit is None and result.task == _ZERO_SHOT
    }
    return float(np.mean(list(found.values()))) if len(found) == len(wanted) else None


def markdown(results: Sequence[EvalResult]) -> str:
    """The table for a README or an issue, in per cent."""
    found = table(results)
    head = ["data set", "metric", *(column.title for column in found.columns)]
    lines = [head, ["---", "---", *["---:"] * len(found.columns)]]
    lines += [[row.name, row.metric, *_cells(found, row)] for row in found.rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def latex(results: Sequence[EvalResult]) -> str:
    """The table for a paper, in per cent; it needs the package booktabs, and one for Chinese if names contain any."""
    found = table(results)
    head = ["data set", "metric", *(column.title for column in found.columns)]
    lines = [rf"\begin{{tabular}}{{ll{'r' * len(found.columns)}}}", r"\toprule", _line(head), r"\midrule"]
    for row in found.rows:
        if row.name == MEAN:
            lines.append(r"\midrule")
        lines.append(_line([row.name, row.metric, *_cells(found, row)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _columns(model: str, by_row: Mapping[str, Sequence[EvalResult]]) -> list[Column]:
    languages = [{one.language for one in several if one.model == model} for several in by_row.values()]
    columns = [Column(model, language) for language in SUFFIX if any(language in several for several in languages)]
    return [*columns, Column(model, None)] if any(len(several) == 2 for several in languages) else columns


def _across(columns: Sequence[Column], value_of: Callable[[str, Language], float | None]) -> tuple[float | None, ...]:
    """The value of each column, and in a gap column Chinese minus English."""
    found = []
    for column in columns:
        if column.language:
            found.append(value_of(column.model, column.language))
        else:
            en, zh = value_of(column.model, "en"), value_of(column.model, "zh")
            found.append(None if en is None or zh is None else zh - en)
    return tuple(found)


def _remark(here: Sequence[EvalResult]) -> str:
    remarks = []
    if any(result.limit for result in here):
        remarks.append(f"a sample of {here[0].n:,} images")
    if corrupt := max(len(result.corrupt) for result in here):
        remarks.append(f"{corrupt:,} images cannot be read")
    return ", ".join(remarks)


def _cells(found: Table, row: Row) -> list[str]:
    return [percent(value, column.is_gap) for value, column in zip(row.values, found.columns, strict=True)]


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as papers print it: 59.6, or +1.2 for a difference."""
    return "" if value is None else f"{100 * value:{'+' if signed else ''}.1f}"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(_escaped(cell) for cell in cells) + r" \\"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {char: "\\" + char for char in "&%$#_{}"}
    return "".join(special.get(char, char) for char in text)
