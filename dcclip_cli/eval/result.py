"""Evaluation results: metrics, per-image details and everything needed to repeat the measurement, as JSON."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval.leaderboards.immich import ImmichMetric
from dcclip_cli.files import atomic_write

_OWN = "sha256"
MAX_FILE_BYTES = 256_000_000
_MAX_ARRAY_BYTES = 1_000_000_000
_DTYPES = ("uint8", "uint16", "uint32", "float32")


@dataclass(frozen=True)
class EvalResult:
    """One model on one data set in one language. `value` is `metrics[metric]`; metrics are in 0..1.

    `partial` says what was there of a data set that was not all there. `n` images were measured; the unreadable ones
    are not among them, but in `corrupt` with the reason.
    `truth_sha256` is equal for the same images, classes and order. `details` are arrays of all images, packed by
    `pack`: `labels`, `ranks`, `predictions`, `scores`, or for retrieval `text_ranks` and `image_ranks`.
    `replaced` maps class names that the tokenizer reads like another class to the alternates in their place;
    `indistinct` are the groups of names that it still reads alike, which cost at least `lost` of the metric.
    With `plain_names` in place of the names that they belong to, the metric is `plain_value`.
    `images_per_second` is 0 if all embeddings were cached. `date` is the day of the measurement in UTC, ISO 8601.
    """

    model: str
    model_fingerprint: str
    dataset: str
    language: Language
    task: str
    metric: str
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
    immich: ImmichMetric | None = None
    plain_names: dict[str, str] = field(default_factory=dict)
    plain_value: float | None = None
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    details: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object, with a checksum of its content."""
        content = asdict(self)
        return content | {_OWN: _checksum(content)}

    @classmethod
    def from_json(cls, content: Any) -> EvalResult:
        """The result in an object of `to_json`, or of a version without checksums. Raises ValueError for others."""
        if isinstance(content, dict) and _OWN in content:
            content = dict(content)
            if content.pop(_OWN) != _checksum(content):
                raise ValueError(Message("it is damaged or was edited: a result is not as it was written"))
        return TypeAdapter(cls).validate_json(json.dumps(content))

    def detail(self, name: str) -> np.ndarray | None:
        """One of the details as an array; None where the result has none of that name."""
        return unpack(self.details[name], f"{self.dataset} {self.language}: {name}") if name in self.details else None


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        dtype, shape = packed["dtype"], tuple(int(size) for size in packed["shape"])
        expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if dtype not in _DTYPES or not 0 <= expected <= _MAX_ARRAY_BYTES:
            raise ValueError(Message("a {} array of the shape {}", dtype, shape))
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(packed["zlib"], validate=True), expected + 1)
        values = np.frombuffer(content, dtype).reshape(shape)
        if not (stream.eof and np.isfinite(values).all()):  # at its end is a checksum
            raise ValueError(Message("it is cut, or not finite"))
        return values
    except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
        raise DcclipError("{} cannot be read: {}", "evaluate again", where, error) from None


def save_results(results: Iterable[EvalResult], folder: Path) -> None:
    """Write DATASET.json for each data set, and summary.json with the values alone; other data sets' files are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    by_dataset: dict[str, list[EvalResult]] = {}
    for result in results:
        name = f"{result.dataset}-partial" if result.partial else result.dataset  # keeps the file of a full result
        by_dataset.setdefault(name, []).append(result)
    for dataset, several in by_dataset.items():
        save_json(folder / f"{dataset}.json", [result.to_json() for result in several])
    short = ("model", "dataset", "language", "task", "metric", "value", "n", "partial")
    summary = [{key: getattr(result, key) for key in short} for several in by_dataset.values() for result in several]
    save_json(folder / "summary.json", summary)


def load_results(path: Path) -> list[EvalResult]:
    """The results in a file that `save_results` or `eval --json` wrote, or in every file of a folder of them."""
    hint = Message("name a file or folder that eval --out wrote")
    if path.is_dir():
        files = [file for file in sorted(path.glob("*.json")) if file.name != "summary.json"]
        if not files:
            raise DcclipError("{} contains no results", hint, path)
        return [result for file in files for result in load_results(file)]
    if not path.is_file():
        raise DcclipError("{} does not exist", hint, path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DcclipError("{} has more than {:,} bytes", hint, path, MAX_FILE_BYTES)
    try:
        return [EvalResult.from_json(row) for row in json.loads(path.read_text("utf-8"))]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        raise DcclipError("{} contains no results of eval: {}", hint, path, what) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DcclipError("{} contains no results of eval: {}", hint, path, str(error)[:200]) from None


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
                what = Message(
                    "{} and {} differ: {} on {} {}", before, path, result.model, result.dataset, result.language
                )
                raise DcclipError("{} has {:.4f} and {:.4f}", "leave one of them out", what, other.value, result.value)
    models: dict[str, set[str]] = {}
    for _, result in found.values():
        models.setdefault(result.model, set()).add(result.model_fingerprint)
    return [
        replace(result, model=f"{result.model} in {path}") if len(models[result.model]) > 1 else result
        for path, result in found.values()
    ]


def save_json(file: Path, content: object) -> None:
    """Write results as indented JSON in UTF-8, all or nothing."""
    atomic_write(file, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
