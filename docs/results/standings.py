"""The Chinese zero-shot leaderboard: checks the submitted results, and makes the tables of its
page.

    python -m docs.results.standings [FOLDER ...]

Prints what is missing or wrong in these folders, by default in all of docs/results/leaderboard/,
and fails if anything is. A folder has results.json of `dcclip eval --json`, bench.json of `dcclip
bench --json`, and model.yaml (`About`).
"""

import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.pair import LANGUAGES, Language
from dcclip_cli.eval import registry
from dcclip_cli.eval.metrics import among_first, per_class
from dcclip_cli.eval.result import ZERO_SHOT, EvalResult, load_results, sha256_of
from dcclip_cli.inference.bench import Bench

FOLDER = Path(__file__).parent / "leaderboard"
SCHEMA = FOLDER / "schema.json"
MODEL: dict[Language, Sequence[str]] = {
    "en": ("model", "weights", "parameters (M)", "MB, weights"),
    "zh": ("模型", "权重", "参数量（M）", "权重（MB）"),
}
ABOUT: dict[Language, Sequence[str]] = {
    "en": ("mean, zh / en", "trained on", "weights from"),
    "zh": ("均值，中 / 英", "训练数据", "权重来源"),
}


class InBoth(BaseModel):
    """Markdown in both languages."""

    model_config = ConfigDict(extra="forbid", strict=True)

    en: str
    zh: str


class About(BaseModel):
    """model.yaml: what the results and the bench do not say of a model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    weights: Literal["fp32", "fp16", "bf16", "int8"]
    model: str  # what `dcclip eval --model` takes
    source: InBoth  # where the weights are, or what makes them
    trained_on: InBoth


@cache
def about(folder: Path) -> About:
    return About.model_validate(yaml.safe_load((folder / "model.yaml").read_text("utf-8")))


@cache
def bench(folder: Path) -> Bench:
    [measured] = TypeAdapter(list[Bench]).validate_json((folder / "bench.json").read_bytes())
    return measured


@cache
def results(folder: Path) -> list[EvalResult]:
    return load_results(folder / "results.json")


def faults(folder: Path) -> Iterator[str]:
    """What keeps a folder's results from the leaderboard: nothing if they are complete and follow
    the protocol.
    """
    for name, load in (("model.yaml", about), ("bench.json", bench), ("results.json", results)):
        try:
            load(folder)
        except (OSError, ValueError, yaml.YAMLError, DcclipError) as error:
            yield f"{folder.name}/{name}: {error}"
            return
    languages_by_set: dict[str, list[Language]] = {}
    for result in results(folder):
        languages_by_set.setdefault(registry.base_name(result.dataset), []).append(result.language)
        yield from (
            f"{folder.name}: {result.dataset} {result.language}: {reason}"
            for reason in _faults_of(result)
        )
    for name, languages in languages_by_set.items():
        if sorted(languages) != sorted(LANGUAGES):
            yield (
                f"{folder.name}: {name} is measured in {', '.join(languages)}; expected "
                f"en and zh, each once"
            )
    if not results(folder):
        yield f"{folder.name}: results.json has no results"
    if len({(result.model_fingerprint, result.precision) for result in results(folder)}) > 1:
        yield f"{folder.name}: the results are of different weights"
    precisions = {result.precision for result in results(folder)}
    if precisions and (about(folder).weights == "int8") != (precisions == {"int8"}):
        yield (
            f"{folder.name}: model.yaml has weights: {about(folder).weights}; the "
            f"results are of {min(precisions)}"
        )


def _faults_of(result: EvalResult) -> Iterator[str]:
    named, classes = registry.find(result.dataset), registry.classes_of(result.dataset)
    if result.task != ZERO_SHOT or not named or not classes:
        yield "no zero-shot result of a data set that `dcclip datasets` lists"
        return
    known_set, language = named
    protocol: dict[str, Any] = {
        "language": language,
        "metric": known_set.metric,
        "n": known_set.size,
        "split": known_set.split,
        "class_names_sha256": sha256_of(classes.names[language]),
        "templates_sha256": sha256_of(classes.templates[language]),
        "limit": None,
        "partial": "",
        "corrupt": {},
        "value": result.metrics.get(known_set.metric),
    }
    for name, expected in protocol.items():
        if (value := getattr(result, name)) != expected:
            yield f"{name} is {value}; the protocol has {expected}"
    try:
        labels, ranks = result.detail("labels"), result.detail("ranks")
        if labels is None or ranks is None or len(labels) != result.n or len(ranks) != result.n:
            yield "no label and rank of every image: write the results with `dcclip eval --json`"
        elif known_set.metric in ("top1", "mean_per_class"):
            credit = among_first(ranks, result.detail("ties"), 1)
            right = (
                credit if known_set.metric == "top1" else per_class(credit, labels, result.classes)
            )
            if not np.isclose(np.mean(right), result.value, rtol=0, atol=1e-9):
                yield f"value is {result.value:.4f}; its labels and ranks give {np.mean(right):.4f}"
    except DcclipError as error:
        yield str(error)


def entries() -> list[Path]:
    """The folders of models, by the number of data sets that they are measured on, then by the
    mean in Chinese.
    """

    def order(folder: Path) -> tuple[int, float]:
        values = [result.value for result in results(folder) if result.language == "zh"]
        return len(values), float(np.mean(values))

    return sorted((path.parent for path in FOLDER.glob("*/model.yaml")), key=order, reverse=True)


def standings(language: Language) -> tuple[Sequence[str], list[list[str]]]:
    """Head and rows of the table of models: the metric of each data set in Chinese / English."""
    models = entries()
    sets = list(
        dict.fromkeys(
            registry.base_name(result.dataset) for folder in models for result in results(folder)
        )
    )
    rows = []
    for folder in models:
        values = {
            (registry.base_name(result.dataset), result.language): result.value
            for result in results(folder)
        }
        pairs = np.asarray(
            [[values.get((name, tongue), np.nan) for tongue in ("zh", "en")] for name in sets]
        )
        cells = ["" if np.isnan(zh) else f"{100 * zh:.1f} / {100 * en:.1f}" for zh, en in pairs]
        mean = " / ".join(f"{100 * value:.1f}" for value in np.nanmean(pairs, axis=0))
        description = (
            getattr(about(folder).trained_on, language),
            getattr(about(folder).source, language),
        )
        name, *size = _model_cells(folder)
        link = f"[{name}](leaderboard/{folder.name}/results.json)"
        rows.append([link, *size, mean, *cells, *description])
    mean_head, *heads = ABOUT[language]
    return (*MODEL[language], mean_head, *sets, *heads), rows


def _model_cells(folder: Path) -> list[str]:
    measured = bench(folder)
    size = f"{measured.parameters / 1e6:.2f}", f"{measured.size_bytes / 1e6:.1f}"
    return [about(folder).name, about(folder).weights, *size]


def schema() -> str:
    """The JSON schema of results.json."""
    return (
        json.dumps(TypeAdapter(list[EvalResult]).json_schema(), indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    folders = folders or sorted(path for path in FOLDER.iterdir() if path.is_dir())
    wrong = [reason for folder in folders for reason in faults(folder)]
    print("\n".join(wrong) or f"{len(folders)} of {len(folders)} folders are complete")
    raise SystemExit(bool(wrong))
