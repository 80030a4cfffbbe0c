"""Result tables: data sets in rows, models and languages in columns; also as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
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
    models = list(dict.fromkeys(result.model for result in results))
    columns = [column for model in models for column in _columns(model, results)]
    rows = []
    for name in dict.fromkeys(row_name(result) for result in results):
        here = [result for result in results if row_name(result) == name]
        values = [_value(here, column) for column in columns]
        rows.append(Row(name, METRIC_NAMES.get(here[0].metric, here[0].metric), tuple(values), _remark(here)))
    means = tuple(_mean(results, column) for column in columns)
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
    head = ["data set", "metric", *(_title(column) for column in found.columns)]
    lines = [head, ["---", "---", *["---:"] * len(found.columns)]]
    lines += [[row.name, row.metric, *_cells(found, row)] for row in found.rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def latex(results: Sequence[EvalResult]) -> str:
    """The table for a paper, in per cent; it needs the package booktabs, and one for Chinese if names contain any."""
    found = table(results)
    head = ["data set", "metric", *(_title(column) for column in found.columns)]
    lines = [rf"\begin{{tabular}}{{ll{'r' * len(found.columns)}}}", r"\toprule", _line(head), r"\midrule"]
    for row in found.rows:
        if row.name == MEAN:
            lines.append(r"\midrule")
        lines.append(_line([row.name, row.metric, *_cells(found, row)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _columns(model: str, results: Sequence[EvalResult]) -> list[Column]:
    own = [result for result in results if result.model == model]
    languages: list[Language] = [one for one in SUFFIX if any(result.language == one for result in own)]
    columns = [Column(model, language) for language in languages]
    both = {row_name(result) for result in own if result.language == "en"} & {
        row_name(result) for result in own if result.language == "zh"
    }
    return [*columns, Column(model, None)] if both else columns


def _value(here: Sequence[EvalResult], column: Column) -> float | None:
    values = {result.language: result.value for result in here if result.model == column.model}
    if column.language:
        return values.get(column.language)
    return values["zh"] - values["en"] if values.keys() >= {"zh", "en"} else None


def _mean(results: Sequence[EvalResult], column: Column) -> float | None:
    if column.language:
        return elevater_mean(results, column.model, column.language)
    means = [elevater_mean(results, column.model, language) for language in SUFFIX]
    return means[1] - means[0] if means[0] is not None and means[1] is not None else None


def _remark(here: Sequence[EvalResult]) -> str:
    remarks = []
    if any(result.limit for result in here):
        remarks.append(f"a sample of {here[0].n:,} images")
    if corrupt := max(len(result.corrupt) for result in here):
        remarks.append(f"{corrupt:,} images cannot be read")
    return ", ".join(remarks)


def _title(column: Column) -> str:
    return f"{column.model} {column.language or 'zh - en'}"


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
