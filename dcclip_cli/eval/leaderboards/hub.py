"""Repositories of the Hugging Face Hub for leaderboards, written from results.

A model's repository has its values in `.eval_results/BENCHMARK.yaml`; the repository of a data set with an `eval.yaml`
collects those of all models, task by task, and shows them as a leaderboard (https://huggingface.co/docs/hub/eval-results).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval import registry
from dcclip_cli.eval.compare import fit_for, unfit
from dcclip_cli.eval.leaderboards.mteb import task_names
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.result import METRIC_NAMES, EvalResult, elevater_mean
from dcclip_cli.files import atomic_write
from dcclip_cli.inference.zero_shot import fill
from dcclip_cli.model.reference import ModelReference

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

    from dcclip_cli.eval.evaluate import EvalOptions

# The hub accepts registered frameworks only: packages/tasks/src/eval.ts of huggingface.js. Chinese data sets of classes
# are tasks of mteb in integrations/mteb/, whose values equal dcclip's.
FRAMEWORK = "mteb"
_LANGUAGES: dict[Language, str] = {"en": "English", "zh": "Chinese"}
_ABOUT = {
    "elevater": "The 20 data sets of ELEVATER (arXiv 2204.08790), zero-shot, with {language} class names and prompts",
    "imagenet-family": "ImageNet, V2, Sketch, A, R and ObjectNet, zero-shot, with {language} class names and prompts",
    "retrieval": "Images and {language} captions retrieved by each other",
}
_CARD = """---
{data}
---
# {name}

{about}. A leaderboard of dual encoders, each data set by its own metric, in per cent.

This repository contains no images, which are where each data set is published. Values are measured with
`dcclip eval --format hub`{mteb}. A model is listed once its
repository has `.eval_results/{name}.yaml`.

本仓库不含图像，请从各数据集的发布处获取。结果由 `dcclip eval --format hub` 测得；模型仓库中有
`.eval_results/{name}.yaml` 即可上榜。

| data set | task | images | classes | metric |
|---|---|---:|---:|---|
{rows}"""
_MTEB = ", or with mteb and its tasks of these names in dcclip's folder `integrations/mteb`"


@dataclass(frozen=True)
class Benchmark:
    """A leaderboard: a group of data sets in a language."""

    group: str
    language: Language

    @property
    def name(self) -> str:
        """The name of its repository: elevater-zh."""
        return f"{self.group}-{self.language}"

    @property
    def file(self) -> str:
        """The file of a model's repository with its values."""
        return f".eval_results/{self.name}.yaml"

    @property
    def sets(self) -> list[KnownSet]:
        return [one for one in registry.GROUPS[self.group] if self.language in registry.languages_of(one)]


BENCHMARKS = [Benchmark(group, language) for group in _ABOUT for language in registry.SUFFIX]


def check(options: EvalOptions | None, owner: str | None) -> None:
    """Raise DcclipError for no owner's name, and where no result of these options would be on a leaderboard."""
    if owner is None or not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", owner, re.ASCII):
        raise DcclipError(
            "--format hub needs a name of the hub, not {}", "name your user or organisation with --owner NAME", owner
        )
    if options:
        options.check_whole("hub", Message("leaderboards are about whole data sets with their own prompts"))
        if not any(map(registry.find, options.names)):
            raise _nothing()


def _nothing() -> DcclipError:
    what = Message("none of the results is of a whole named data set, which leaderboards are about")
    return DcclipError("--format hub: {}", "measure one, such as imagenet-cn; dcclip datasets lists them", what)


def write(
    results: Sequence[EvalResult], folder: Path, owner: str | None, models: Mapping[str, ModelReference]
) -> list[str]:
    """Write models/NAME/.eval_results/ for each model and datasets/BENCHMARK/ for each benchmark of the results.

    Returns results that are left out, and how to upload the rest.
    """
    assert owner
    fit, lines = fit_for(results, unfit)
    if not fit:
        raise _nothing()
    wanted: set[Benchmark] = set()
    for name, several in _by_model(fit).items():
        place = folder / "models" / name
        for benchmark, text in model_files(several, owner).items():
            _write(place / benchmark.file, text)
            wanted.add(benchmark)
        lines.append(f"upload to the model's repository: hf upload {owner}/{name} {place}")
    for benchmark in (one for one in BENCHMARKS if one in wanted):
        place = folder / "datasets" / benchmark.name
        _save_benchmark(benchmark, place)
        lines.append(f"upload once: hf upload {owner}/{benchmark.name} {place} --repo-type dataset")
    return lines


def model_files(results: Sequence[EvalResult], owner: str) -> dict[Benchmark, str]:
    """The content of a model's file for each benchmark that its results are of; `results` are comparable."""
    from huggingface_hub import eval_result_entries_to_yaml

    found = {benchmark: _entries(benchmark, results, owner) for benchmark in BENCHMARKS}
    return {one: _yaml(eval_result_entries_to_yaml(entries)) for one, entries in found.items() if entries}


def _by_model(results: Iterable[EvalResult]) -> dict[str, list[EvalResult]]:
    """The results of each model by a name that a repository can have."""
    found: dict[tuple[str, str], list[EvalResult]] = defaultdict(list)
    for result in results:
        found[result.model, result.model_fingerprint].append(result)
    names: dict[str, list[EvalResult]] = {}
    for (model, fingerprint), several in found.items():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
        names[f"{name}-{fingerprint[:8]}" if name in names else name] = several
    return names


def _entries(benchmark: Benchmark, results: Sequence[EvalResult], owner: str) -> list[EvalResultEntry]:
    """The values of one model, in per cent: the mean where there is one, and each data set's own metric."""
    from huggingface_hub import EvalResultEntry

    language, by_name = benchmark.language, {result.dataset: result for result in results}
    found = {known: by_name.get(registry.name_in(known, language)) for known in benchmark.sets}
    here = {known: result for known, result in found.items() if result}
    if not here:
        return []
    rows = [(_task_id(known, language), one.value, _notes(one), one.date) for known, one in here.items()]
    mean = elevater_mean(list(here.values()), results[0].model, language)
    if mean is not None:
        notes = "mean of the 20 data sets, each by its own metric, in per cent"
        rows.insert(0, (benchmark.name, mean, notes, max(result.date for result in here.values())))
    repository = f"{owner}/{benchmark.name}"
    return [
        EvalResultEntry(
            dataset_id=repository,
            task_id=task,
            value=round(100 * value, 2),
            date=date or None,
            notes=notes,
            source_url=f"https://huggingface.co/datasets/{repository}",
            source_name=f"dcclip eval {results[0].versions.get('dcclip', '')}".rstrip(),
            source_user=owner,
        )
        for task, value, notes, date in rows
    ]


def _task_id(known: KnownSet, language: Language) -> str:
    """mteb's name of a task of classes, where it has one; its retrieval tasks are of one way, with other values."""
    names = task_names(registry.name_in(known, language), language) if known.classes else []
    return names[0] if names else known.label


def _notes(result: EvalResult) -> str:
    corrupt = f", {len(result.corrupt):,} more cannot be read" if result.corrupt else ""
    replaced = f", {len(result.replaced)} names asked by alternates" if result.replaced else ""
    return f"{METRIC_NAMES[result.metric]} in per cent, {result.n:,} images{corrupt}{replaced}, {result.precision}"


def _save_benchmark(benchmark: Benchmark, folder: Path) -> None:
    """Write the repository of a benchmark: `eval.yaml`, the class names and prompts of each data set, and a card."""
    from huggingface_hub import DatasetCardData

    language, ids = benchmark.language, {known: _task_id(known, benchmark.language) for known in benchmark.sets}
    about = _ABOUT[benchmark.group].format(language=_LANGUAGES[language])
    files = {known: f"classes/{known.label}.jsonl" for known in benchmark.sets if known.classes}
    for known, file in files.items():
        _save_classes(known, language, folder / file)
    tasks = [{"id": benchmark.name}] if benchmark.group == "elevater" else []  # the mean
    for known, task in ids.items():
        tasks.append({"id": task} | ({"config": known.label} if known in files else {}) | {"split": "test"})
    content = {"name": benchmark.name, "description": about, "evaluation_framework": FRAMEWORK, "tasks": tasks}
    _write(folder / "eval.yaml", _yaml(content))
    data = DatasetCardData(
        language=[language],
        pretty_name=benchmark.name,
        task_categories=["zero-shot-image-classification"] if files else None,
        configs=[
            {"config_name": known.label, "data_files": [{"split": "test", "path": file}]}
            for known, file in files.items()
        ]
        or None,
    )
    rows = "".join(
        f"| {one.label} | {task} | {one.size or ''} | {one.classes or ''} | {METRIC_NAMES[one.metric]} |\n"
        for one, task in ids.items()
    )
    mteb = _MTEB if any(one.label != task for one, task in ids.items()) else ""
    _write(folder / "README.md", _CARD.format(data=data, name=benchmark.name, about=about, mteb=mteb, rows=rows))


def _save_classes(known: KnownSet, language: Language, file: Path) -> None:
    own = prompts.read(registry.prompts_of(known))
    lines = [
        {"label": label, "name": name, "prompts": fill(own.templates[language], name)}
        for label, name in enumerate(own.names[language])
    ]
    _write(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, text)


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
