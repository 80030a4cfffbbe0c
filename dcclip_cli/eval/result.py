"""Evaluation results as JSON: metrics, per-image details, how to repeat the measurement; and the
table of several.
"""

import base64
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dcclip_cli.core.errors import DcclipError, Message, all_of, joined
from dcclip_cli.core.files import write_json
from dcclip_cli.data.pair import Language
from dcclip_cli.eval.registry import ELEVATER, SUFFIX, Metric, base_name, classes_of

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": Message("mean per class"),
    "map11": Message("11-point mAP"),
    "map": "mAP",
    "roc_auc": "ROC AUC",
    **{
        f"{target}_recall@{k}": f"{target} R@{k}"
        for target in ("image", "text")
        for k in (1, 5, 10)
    },
    "mean_recall": Message("mean recall"),
    **{f"overlap@{k}": f"overlap@{k}" for k in (10, 1, 5)},
    "rank_correlation": Message("rank correlation"),
    "known": Message("known queries"),
    "traditional": Message("Traditional"),
}
MEAN = Message("ELEVATER, mean over 20")
ZERO_SHOT = "zero-shot classification"
_SUMMARY = "summary.json"
_HINT = Message("give a file or folder that eval --out wrote")
_COMPARED = {
    "class_names_sha256": Message("class names"),
    "templates_sha256": Message("prompts"),
    "metric": Message("metrics"),
    "split": Message("splits"),
    "limit": Message("samples"),
    "partial": Message("parts of the data set"),
    "n": Message("numbers of images"),
}


@dataclass(frozen=True)
class EvalResult:
    """One model on one data set in one language. `value` is `metrics[metric]`; metrics are in
    0..1.

    `partial` says what was there of a data set that was not all there. `n` images were measured;
    the unreadable ones are not among them, but in `corrupt` with the reason. `truth_sha256` is
    equal for the same images, classes and order. `details` are arrays of all images, packed by
    `pack`: `labels`, `ranks`, `predictions`, `scores`, or for retrieval `text_ranks` and
    `image_ranks`; and `ties`, how many classes have the label's score, where that is more than
    one. `replaced` maps class names with the embedding of another class to the alternates in their
    place; `indistinct` are the groups of names that still have the same embedding. `lost` is the
    fraction of answers that a tie decides. `twins` are queries in two languages, those first whose
    images differ most. With `plain_names` in place of the names that they belong to, the metric is
    `plain_value`. `images_per_second` is 0 if all embeddings were cached. `date` is the day of the
    measurement in UTC, ISO 8601.
    """

    model: str
    model_fingerprint: str
    dataset: str
    language: Language
    task: str
    metric: Metric
    value: float
    metrics: dict[str, float]
    n: int
    classes: int
    class_names_sha256: str
    templates_sha256: str
    preprocessing: dict[str, Any]
    seconds: float
    images_per_second: float
    versions: dict[str, str]
    date: str = ""
    split: str = ""
    limit: int | None = None
    partial: str = ""
    precision: str = "fp32"
    truth_sha256: str = ""
    corrupt: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    indistinct: list[list[str]] = field(default_factory=list)
    lost: float = 0.0
    plain_names: dict[str, str] = field(default_factory=dict)
    plain_value: float | None = None
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    twins: list[dict[str, Any]] = field(default_factory=list, repr=False)
    details: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        strict=True, allow_inf_nan=False, extra="ignore"
    )

    @property
    def label(self) -> str:
        """The name of the model in tables, with bf16 if it was computed in that; names of exports
        have their own.
        """
        return f"{self.model} (bf16)" if self.precision == "bf16" else self.model

    def detail(self, name: str) -> np.ndarray | None:
        """One of the details as an array; None where the result has none of that name."""
        return (
            unpack(self.details[name], f"{self.dataset} {self.language}: {name}")
            if name in self.details
            else None
        )


def sha256_of(lines: Sequence[str]) -> str:
    """The hash of a list of strings, order included."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pack(values: np.ndarray) -> dict[str, Any]:
    """An array as JSON: integers in the smallest sufficient type, other numbers as float32."""
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.min_scalar_type(int(values.max(initial=0))))
    else:
        values = values.astype(np.float32)
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()
    return {"dtype": values.dtype.name, "shape": list(values.shape), "zlib": packed}


def unpack(packed: Mapping[str, Any], where: str) -> np.ndarray:
    """An array that `pack` wrote. Raises DcclipError for anything else."""
    try:
        content = zlib.decompress(base64.b64decode(packed["zlib"]))
        return np.frombuffer(content, packed["dtype"]).reshape(packed["shape"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise DcclipError(
            "{} cannot be read: {}", "evaluate the model again", where, error
        ) from None


def _file_of(dataset: str, partial: str) -> str:
    """The name of a file of results, without suffix: that of a part is not the one of a full
    result.
    """
    return f"{dataset}-partial" if partial else dataset


def save_results(results: Sequence[EvalResult], folder: Path) -> list[EvalResult]:
    """Write DATASET.json for each data set, and summary.json with the values of all in the folder,
    which are returned.

    These include earlier results on other data sets, unless a model of the same name has other
    weights by now.
    """
    by_file = defaultdict[str, list[EvalResult]](list)
    for result in results:
        by_file[_file_of(result.dataset, result.partial)].append(result)
    for name, results_of_file in by_file.items():
        write_json(folder / f"{name}.json", [asdict(result) for result in results_of_file])
    weights = {
        result.model: result.model_fingerprint.partition("-")[0] for result in results
    }  # in any precision
    earlier = {}
    for file, rows in _listed(folder).items():
        earlier[file.stem] = [
            row for row in rows if row.model_fingerprint.startswith(weights.get(row.model, ""))
        ]
    ordered = [
        result for results_of_file in (earlier | by_file).values() for result in results_of_file
    ]
    short = ("model", "dataset", "language", "task", "metric", "value", "n", "partial")
    write_json(
        folder / _SUMMARY, [{key: getattr(result, key) for key in short} for result in ordered]
    )
    return ordered


def _listed(folder: Path) -> dict[Path, list[EvalResult]]:
    """The results that a folder's summary.json lists, by file, in this order."""
    try:
        summary = json.loads((folder / _SUMMARY).read_bytes())
        listed = [
            (entry["model"], entry["dataset"], entry["language"], entry["partial"])
            for entry in summary
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    files = dict.fromkeys(
        folder / f"{_file_of(dataset, partial)}.json" for _, dataset, _, partial in listed
    )
    return {
        file: [
            result
            for result in load_results(
                file, Message("remove the file, or evaluate that data set again")
            )
            if (result.model, result.dataset, result.language, result.partial) in listed
        ]
        for file in files
        if file.is_file()
    }


def load_results(path: Path, hint: Message = _HINT) -> list[EvalResult]:
    """The results in a file that `save_results` or `eval --json` wrote, or in every file of a
    folder of them.

    Results are those that the folder's summary.json lists, in its order; of other files, all
    follow by name.
    """
    if path.is_dir():
        if (path / "eval").is_dir():  # of a run
            path /= "eval"
        results = _listed(path)
        results |= {
            file: load_results(file)
            for file in sorted(path.glob("*.json"))
            if file.name != _SUMMARY and file not in results
        }
        if not results:
            raise DcclipError("{} contains no results", hint, path)
        return [*chain.from_iterable(results.values())]
    if not path.is_file():
        raise DcclipError("{} does not exist", hint, path)
    try:
        return TypeAdapter(list[EvalResult]).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg'].lower()}"
        raise DcclipError("{} does not contain eval results: {}", hint, path, reason) from None


def load_several(paths: Sequence[Path]) -> list[EvalResult]:
    """The results of several files or folders, a measurement that is in several of them once.

    Different models of the same name are told apart by their paths. Raises DcclipError where two
    results of a model on a data set differ.
    """
    measured: dict[tuple[str, ...], tuple[Path, EvalResult]] = {}
    for path in paths:
        for result in load_results(path):
            key = (
                result.model_fingerprint,
                result.dataset,
                result.language,
                result.task,
                result.partial,
            )
            before, earlier = measured.setdefault(key, (path, result))
            if earlier.value != result.value:
                raise DcclipError(
                    "{} and {} differ: {} on {} {} is {:.4f} and {:.4f}", "remove one of the two files",
                    before, path, result.model, result.dataset, result.language, earlier.value, result.value,
                )  # fmt: skip
    models: dict[str, set[str]] = {}
    for _, result in measured.values():
        models.setdefault(result.model, set()).add(result.model_fingerprint)
    return [
        replace(result, model=f"{result.model} in {path}")
        if len(models[result.model]) > 1
        else result
        for path, result in measured.values()
    ]


def unlike(first: EvalResult, second: EvalResult) -> tuple[str, ...]:
    """What was measured differently, so that two results do not compare."""
    return tuple(
        label for name, label in _COMPARED.items() if getattr(first, name) != getattr(second, name)
    )


@dataclass(frozen=True)
class Column:
    """A model in a language, or the gap between its Chinese and its English results, in points."""

    model: str
    language: Language | None

    @property
    def title(self) -> str:
        return f"{self.model} {self.language or 'zh - en'}"


@dataclass(frozen=True)
class TableRow:
    """A data set on a task, in all languages; `values` are in 0..1 (gaps: -1..1), None where there
    is no result.
    """

    name: str
    metric: str
    values: tuple[float | None, ...]
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """All results; the last of the `rows` is ELEVATER's `mean`, if there is one."""

    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    mean: TableRow | None = None


def table(results: Sequence[EvalResult]) -> Table:
    """All results, by label, in their order; with ELEVATER's mean where a model has all twenty."""
    results = [replace(result, model=result.label) for result in results]
    by_row: dict[str, list[EvalResult]] = defaultdict(list)
    for result in results:
        name = base_name(result.dataset)
        name = Message("{} (incomplete)", name) if result.partial else name
        by_row[
            name if result.task in (ZERO_SHOT, "retrieval") else joined(", ", (name, result.task))
        ].append(result)
    columns: list[Column] = []
    for model in dict.fromkeys(result.model for result in results):
        sets = [
            {result.language for result in row if result.model == model} for row in by_row.values()
        ]
        columns += [
            Column(model, language)
            for language in SUFFIX
            if any(language in languages for languages in sets)
        ]
        columns += [Column(model, None)] * any(len(languages) == 2 for languages in sets)
    rows = []
    for name, row_results in by_row.items():
        values = {(result.model, result.language): result.value for result in row_results}
        metric = METRIC_NAMES[row_results[0].metric]
        row_values = _across(columns, lambda *key: values.get(key))  # noqa: B023
        rows.append(TableRow(name, metric, row_values, _remark(row_results)))
    means = _across(columns, lambda *key: elevater_mean(results, *key))
    mean = (
        TableRow(MEAN, Message("their own"), means)
        if any(value is not None for value in means)
        else None
    )
    return Table(tuple(columns), (*rows, mean) if mean else tuple(rows), mean)


def _across(
    columns: Sequence[Column], value_of: Callable[[str, Language], float | None]
) -> tuple[float | None, ...]:
    """The value of each column, and in a gap column Chinese minus English."""

    def cell(column: Column) -> float | None:
        if column.language:
            return value_of(column.model, column.language)
        en = value_of(column.model, "en")
        zh = value_of(column.model, "zh")
        return None if en is None or zh is None else zh - en

    return tuple(map(cell, columns))


def _remark(results: Sequence[EvalResult]) -> str:
    is_sample = any(result.limit for result in results)
    corrupt = max(len(result.corrupt) for result in results)
    alike_by_model = dict.fromkeys((result.label for result in results), 0)
    for result in results:
        alike_by_model[result.label] = max(
            alike_by_model[result.label], sum(map(len, result.indistinct))
        )
    alike = max(alike_by_model.values())
    models = [model for model, count in alike_by_model.items() if count == alike]
    shared = Message("{} classes share an embedding with another class", alike) if alike else ""
    if shared and len(models) < len(alike_by_model):
        shared = Message("{} ({})", shared, ", ".join(models))
    texts = classes_of(results[0].dataset)
    first = {result.language: result for result in reversed(results)}
    differing = {label for result in results for label in unlike(first[result.language], result)}
    by_names: dict[str, list[str]] = defaultdict(
        list
    )  # the values of the models with the plain names of a language
    for result in results:
        if result.plain_names:
            by_names[", ".join(result.plain_names.values())].append(percent(result.plain_value))
    remarks = (
        results[0].partial,
        Message("{} differ: not comparable", all_of(sorted(differing))) if differing else "",
        texts.gap_remark if texts and len({result.language for result in results}) > 1 else "",
        Message("a sample of {:,} images", results[0].n) if is_sample else "",
        Message("{:,} unreadable images", corrupt) if corrupt else "",
        shared,
        *(Message("with {} {} %", names, ", ".join(values)) for names, values in by_names.items()),
    )
    return joined(", ", filter(None, remarks))


def elevater_mean(results: Sequence[EvalResult], model: str, language: Language) -> float | None:
    """The mean over ELEVATER's twenty data sets; None unless each of them was measured in full."""
    of_model = [result for result in results if result.model == model and result.task == ZERO_SHOT]
    value_of = {
        result.dataset: result.value for result in of_model if not (result.limit or result.partial)
    }
    values = [value_of.get(dataset.label + SUFFIX[language]) for dataset in ELEVATER]
    return None if None in values else float(np.mean(values))  # type: ignore[arg-type]


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as papers print it: 59.6, or +1.2 for a difference."""
    return "" if value is None else f"{100 * value:{'+' if signed else ''}z.1f}"  # z: no -0.0
