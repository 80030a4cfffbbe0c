"""What an evaluation found, and everything that one must know to repeat it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcclip_cli.data.pair import Language


@dataclass(frozen=True)
class EvalResult:
    """One model on one data set in one language. `value` is `metrics[metric]`; metrics are in 0..1."""

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


def sha256_of(lines: Sequence[str]) -> str:
    """The hash of a list of strings, order included."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_results(results: Iterable[EvalResult], folder: Path) -> None:
    """Write DATASET.json for each data set, and summary.json with the values alone; files of other sets stay."""
    folder.mkdir(parents=True, exist_ok=True)
    by_dataset: dict[str, list[EvalResult]] = {}
    for result in results:
        by_dataset.setdefault(result.dataset, []).append(result)
    for dataset, several in by_dataset.items():
        _write(folder / f"{dataset}.json", [asdict(result) for result in several])
    short = ("model", "dataset", "language", "metric", "value", "n")
    summary = [{key: getattr(result, key) for key in short} for several in by_dataset.values() for result in several]
    _write(folder / "summary.json", summary)


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
