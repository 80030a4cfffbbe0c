"""Evaluation results as JSON: metrics, per-image details, how to repeat the measurement; and the table of several."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message, all_of, joined
from dcclip_cli.eval.registry import ELEVATER, SUFFIX, Metric, base_name, classes_of
from dcclip_cli.files import write_json

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
ZERO_SHOT = "zero-shot classification"
_SUMMARY = "summary.json"
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
    """One model on one data set in one language. `value` is `metrics[metric]`; metrics are in 0..1.

    `partial` says what was there of a data set that was not all there. `n` images were measured; the unreadable ones
    are not among them, but in `corrupt` with the reason.
    `truth_sha256` is equal for the same images, classes and order. `details` are arrays of all images, packed by
    `pack`: `labels`, `ranks`, `predictions`, `scores`, or for retrieval `text_ranks` and `image_ranks`; and `ties`, how
    many classes have the label's score, where that is more than one.
    `replaced` maps class names with the embedding of another class to the alternates in their place; `indistinct` are
    the groups of names that still have the same embedding. `lost` is the fraction of answers that a tie decides.
    With `plain_names` in place of the names that they belong to, the metric is `plain_value`.
    `images_per_second` is 0 if all embeddings were cached. `date` is the day of the measurement in UTC, ISO 8601.
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
    details: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    @property
    def label(self) -> str:
        """The name of the model in tables, with bf16 if it was computed in that; names of exports have their own."""
        return f"{self.model} (bf16)" if self.precision == "bf16" else self.model

    def detail(self, name: str) -> np.ndarray | None:
        """One of the details as an array; None where the result has none of that name."""
        return unpack(self.details[name], f"{self.dataset} {self.language}: {name}") if name in self.details else None


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
        raise DcclipError("{} cannot be read: {}", "evaluate again", where, error) from None


def _file_of(dataset: str, partial: str) -> str:
    """The name of a file of results, without suffix: that of a part is not the one of a full result."""
    return f"{dataset}-partial" if partial else dataset


def save_results(results: Sequence[EvalResult], folder: Path) -> list[EvalResult]:
    """Write DATASET.json for each data set, and summary.json with the values of all in the folder, which are returned.

    These include earlier results on other data sets, unless a model of the same name has other weights by now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_file = defaultdict[str, list[EvalResult]](list)
    for result in results:
        by_file[_file_of(result.dataset, result.partial)].append(result)
    for name, results_of_file in by_file.items():
        write_json(folder / f"{name}.json", [asdict(result) for result in results_of_file])
    weights = {result.model: result.model_fingerprint.partition("-")[0] for result in results}  # in any precision
    earlier = {
        file.stem: [one for one in load_results(file) if one.model_fingerprint.startswith(weights.get(one.model, ""))]
        for file in _listed(folder)
    }
    ordered = [result for results_of_file in (earlier | by_file).values() for result in results_of_file]
    short = ("model", "dataset", "language", "task", "metric", "value", "n", "partial")
    write_json(folder / _SUMMARY, [{key: getattr(result, key) for key in short} for result in ordered])
    return ordered


def _listed(folder: Path) -> list[Path]:
    """The files of results in a folder that its summary.json lists, in this order."""
    try:
        summary = json.loads((folder / _SUMMARY).read_bytes())
        names = dict.fromkeys(_file_of(entry["dataset"], entry["partial"]) for entry in summary)
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [file for name in names if (file := folder / f"{name}.json").is_file()]


def load_results(path: Path) -> list[EvalResult]:
    """The results in a file that `save_results` or `eval --json` wrote, or in every file of a folder of them.

    Files are in the order of the folder's summary.json, others follow by name.
    """
    hint = Message("name a file or folder that eval --out wrote")
    if path.is_dir():
        by_name = [file for file in sorted(path.glob("*.json")) if file.name != _SUMMARY]
        files = dict.fromkeys([*_listed(path), *by_name])
        if not files:
            raise DcclipError("{} contains no results", hint, path)
        return [result for file in files for result in load_results(file)]
    if not path.is_file():
        raise DcclipError("{} does not exist", hint, path)
    try:
        return TypeAdapter(list[EvalResult]).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg'].lower()}"
        raise DcclipError("{} contains no results of eval: {}", hint, path, what) from None


def load_several(paths: Sequence[Path]) -> list[EvalResult]:
    """The results of several files or folders, a measurement that is in several of them once.

    Different models of the same name are told apart by their paths. Raises DcclipError where two results of a model on
    a data set differ.
    """
    found: dict[tuple[str, ...], tuple[Path, EvalResult]] = {}
    for path in paths:
        for result in load_results(path):
            key = (result.model_fingerprint, result.dataset, result.language, result.task, result.partial)
            before, other = found.setdefault(key, (path, result))
            if other.value != result.value:
                raise DcclipError(
                    "{} and {} differ: {} on {} {} has {:.4f} and {:.4f}", "leave one of them out",
                    before, path, result.model, result.dataset, result.language, other.value, result.value,
                )  # fmt: skip
    models: dict[str, set[str]] = {}
    for _, result in found.values():
        models.setdefault(result.model, set()).add(result.model_fingerprint)
    return [
        replace(result, model=f"{result.model} in {path}") if len(models[result.model]) > 1 else result
        for path, result in found.values()
    ]


def unlike(one: EvalResult, other: EvalResult) -> tuple[str, ...]:
    """What was measured differently, so that two results do not compare."""
    return tuple(label for name, label in _COMPARED.items() if getattr(one, name) != getattr(other, name))


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
    """All results, by label, in their order; with ELEVATER's mean where a model has all twenty."""
    results = [replace(result, model=result.label) for result in results]
    by_row: dict[str, list[EvalResult]] = defaultdict(list)
    for result in results:
        name = base_name(result.dataset) + (", in part" if result.partial else "")
        by_row[name if result.task in (ZERO_SHOT, "retrieval") else f"{name}, {result.task}"].append(result)
    columns = [column for model in dict.fromkeys(one.model for one in results) for column in _columns(model, by_row)]
    rows = []
    for name, several in by_row.items():
        values = {(one.model, one.language): one.value for one in several}
        metric = METRIC_NAMES[several[0].metric]
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
    about = classes_of(here[0].dataset)
    first = {result.language: result for result in reversed(here)}
    differing = {label for result in here for label in unlike(first[result.language], result)}
    remarks = (
        here[0].partial,
        Message("{} differ: do not compare", all_of(sorted(differing))) if differing else "",
        about.gap_remark if about and len({result.language for result in here}) > 1 else "",
        sample,
        Message("{:,} images cannot be read", corrupt) if corrupt else "",
        Message("{} classes have the embedding of another", alike) if alike else "",
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


def elevater_mean(results: Sequence[EvalResult], model: str, language: Language) -> float | None:
    """The mean over ELEVATER's twenty data sets; None unless each of them was measured in full."""
    whole = [one for one in results if one.task == ZERO_SHOT and not (one.limit or one.partial) and one.model == model]
    value_of = {result.dataset: result.value for result in whole}
    values = [value_of.get(known.label + SUFFIX[language]) for known in ELEVATER]
    return None if None in values else float(np.mean(values))  # type: ignore[arg-type]


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as papers print it: 59.6, or +1.2 for a difference."""
    return "" if value is None else f"{100 * value:{'+' if signed else ''}.1f}"
