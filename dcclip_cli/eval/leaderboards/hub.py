"""Repositories of the Hugging Face Hub for leaderboards, written from results.

A model's repository has its values in `.eval_results/BENCHMARK.yaml`; the repository of a data set with an `eval.yaml`
collects those of all models, task by task, and shows them as a leaderboard (https://huggingface.co/docs/hub/eval-results).
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dcclip_cli.data import prompts
from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval import registry
from dcclip_cli.eval.compare import fit_for, unfit
from dcclip_cli.eval.evaluate import EvalOptions
from dcclip_cli.eval.leaderboards.mteb import tasks_of
from dcclip_cli.eval.registry import KnownSet
from dcclip_cli.eval.result import METRIC_NAMES, EvalResult, elevater_mean
from dcclip_cli.files import atomic_write
from dcclip_cli.inference.zero_shot import fill
from dcclip_cli.model.reference import ModelSource

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
        return f".eval_results/{self.name}.yaml"

    @property
    def sets(self) -> list[KnownSet]:
        return [entry for entry in registry.GROUPS[self.group] if self.language in registry.languages_of(entry)]


BENCHMARKS = [Benchmark(group, language) for group in _ABOUT for language in registry.SUFFIX]


def check(options: EvalOptions | None, owner: str | None) -> None:
    """Raise DcclipError for no owner's name, and where no result of these options would be on a leaderboard."""
    if owner is None or not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?", owner, re.ASCII):
        raise DcclipError(
            "--format hub needs a hub user or organisation, not {}",
            "give your user or organisation with --owner NAME",
            owner,
        )
    if options:
        options.check_whole("hub", Message("leaderboards accept only complete data sets with their own prompts"))
        if not any(map(registry.find, options.names)):
            raise _nothing()


def _nothing() -> DcclipError:
    reason = Message("no result covers a complete named data set; leaderboards accept only these")
    return DcclipError("--format hub: {}", "evaluate a complete named data set, such as imagenet-cn", reason)


def write(
    results: Sequence[EvalResult], folder: Path, owner: str | None, models: Mapping[str, ModelSource]
) -> list[str]:
    """Write models/NAME/.eval_results/ and datasets/BENCHMARK/; returns what is left out, and how to upload."""
    assert owner
    fit, lines = fit_for(results, unfit)
    if not fit:
        raise _nothing()
    by_model: dict[tuple[str, str], list[EvalResult]] = defaultdict(list)
    for result in fit:
        by_model[result.model, result.model_fingerprint].append(result)
    names, written = set[str](), set[Benchmark]()
    for (model, fingerprint), model_results in by_model.items():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
        name = f"{name}-{fingerprint[:8]}" if name in names else name
        names.add(name)
        target = folder / "models" / name
        for benchmark, text in model_files(model_results, owner).items():
            atomic_write(target / benchmark.file, text)
            written.add(benchmark)
        lines.append(Message("upload to the model's repository: hf upload {}/{} {}", owner, name, target))
    for benchmark in sorted(written, key=BENCHMARKS.index):
        target = folder / "datasets" / benchmark.name
        _save_benchmark(benchmark, target)
        lines.append(Message("upload once: hf upload {}/{} {} --repo-type dataset", owner, benchmark.name, target))
    return lines


def model_files(results: Sequence[EvalResult], owner: str) -> dict[Benchmark, str]:
    """A model's file for each benchmark that its comparable results are of, values in per cent, the mean first."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files, by_name = dict[Benchmark, str](), {result.dataset: result for result in results}
    for benchmark in BENCHMARKS:
        language, repository = benchmark.language, f"{owner}/{benchmark.name}"
        result_of = {dataset: by_name.get(registry.name_in(dataset, language)) for dataset in benchmark.sets}
        measured = {dataset: result for dataset, result in result_of.items() if result}
        if not measured:
            continue
        rows = []
        for dataset, result in measured.items():
            corrupt = f", {len(result.corrupt):,} more cannot be read" if result.corrupt else ""
            replaced = f", {len(result.replaced)} names asked by alternates" if result.replaced else ""
            images = f"{result.n:,} images{corrupt}{replaced}, {result.precision}"
            notes = f"{METRIC_NAMES[result.metric]} in per cent, {images}"
            rows.append((_task_id(dataset, language), result.value, notes, result.date))
        mean = elevater_mean(list(measured.values()), results[0].model, language)
        if mean is not None:
            notes = "mean of the 20 data sets, each by its own metric, in per cent"
            rows.insert(0, (benchmark.name, mean, notes, max(result.date for result in measured.values())))
        entries = [
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
        files[benchmark] = _yaml(eval_result_entries_to_yaml(entries))
    return files


def _task_id(dataset: KnownSet, language: Language) -> str:
    """mteb's name of a task of classes, where it has one; its retrieval tasks are of one way, with other values."""
    tasks = tasks_of(registry.name_in(dataset, language), language) if dataset.classes else {}
    return next(iter(tasks), dataset.label)


def _save_benchmark(benchmark: Benchmark, folder: Path) -> None:
    """Write the repository of a benchmark: `eval.yaml`, the class names and prompts of each data set, and a card."""
    from huggingface_hub import DatasetCardData

    language, ids = benchmark.language, {dataset: _task_id(dataset, benchmark.language) for dataset in benchmark.sets}
    description = _ABOUT[benchmark.group].format(language=_LANGUAGES[language])
    files = {dataset: f"classes/{dataset.label}.jsonl" for dataset in benchmark.sets if dataset.classes}
    configs = []
    for dataset, file in files.items():
        configs.append({"config_name": dataset.label, "data_files": [{"split": "test", "path": file}]})
        texts = prompts.read(registry.prompts_of(dataset))
        classes = [
            {"label": label, "name": name, "prompts": fill(texts.templates[language], name)}
            for label, name in enumerate(texts.names[language])
        ]
        atomic_write(folder / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in classes))
    tasks = [{"id": benchmark.name}] if benchmark.group == "elevater" else []  # the mean
    for dataset, task in ids.items():
        tasks.append({"id": task} | ({"config": dataset.label} if dataset in files else {}) | {"split": "test"})
    content = {"name": benchmark.name, "description": description, "evaluation_framework": FRAMEWORK, "tasks": tasks}
    atomic_write(folder / "eval.yaml", _yaml(content))
    data = DatasetCardData(
        language=[language],
        pretty_name=benchmark.name,
        task_categories=["zero-shot-image-classification"] if files else None,
        configs=configs or None,
    )
    rows = ""
    for dataset, task in ids.items():
        rows += f"| {dataset.label} | {task} | {dataset.size or ''} | {dataset.classes or ''} "
        rows += f"| {METRIC_NAMES[dataset.metric]} |\n"
    mteb = _MTEB if any(dataset.label != task for dataset, task in ids.items()) else ""
    card = _CARD.format(data=data, name=benchmark.name, about=description, mteb=mteb, rows=rows)
    atomic_write(folder / "README.md", card)


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
