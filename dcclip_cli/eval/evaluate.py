"""Evaluate models on test sets: zero-shot classification, retrieval and linear probes, in Chinese and in English."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError, Message
from dcclip_cli.eval import probe, registry
from dcclip_cli.eval.class_texts import ClassTexts, class_texts, lost
from dcclip_cli.eval.dataset import Captions, Classes, DataSet
from dcclip_cli.eval.datasets import Part, Templates, check_dataset, open_dataset, training_split
from dcclip_cli.eval.embedding import Embedded, Embedder, FeatureCache
from dcclip_cli.eval.leaderboards import immich
from dcclip_cli.eval.metrics import Score, score_classes, score_retrieval
from dcclip_cli.eval.registry import Metric
from dcclip_cli.eval.result import EvalResult, pack, sha256_of
from dcclip_cli.machine import keep_freed_memory
from dcclip_cli.model import Precision
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.options import Options
from dcclip_cli.predict.encoder import TorchEncoder, load_encoder, shortened
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.versions import versions


class EvalOptions(Options):
    """The test sets that models are measured on, and how."""

    datasets: tuple[str, ...] = Field(
        min_length=1, description="Data set names or groups, Parquet or tar files of pairs, folders of class folders"
    )
    languages: tuple[Language, ...] | None = Field(
        None, description="Languages of your own data sets; default: every language that a data set has"
    )
    data_root: str | None = Field(None, description="Folder of the named data sets, each in DATA_ROOT/NAME/")
    batch_size: int = Field(64, ge=1, le=65_536, description="Images per batch")
    limit: int | None = Field(
        None, ge=1, le=1_000_000_000, description="Maximum images per data set, a fixed random sample"
    )
    partial: Part = Field(
        "no",
        description="Whether unreadable images are no error, and a part of a named set of classes is enough: `all` "
        "asks for all its classes, `present` those with images; parts are marked, and do not compare with the whole",
    )
    templates: Templates = Field(
        "own", description="Prompt templates: the data set's `own`, a few generic ones (`compact`), or the bare `name`"
    )
    task: Literal["zero-shot", "retrieval", "probe"] = Field(
        "zero-shot",
        description="`zero-shot` classification; `retrieval`: all captions of your own pairs are texts to retrieve; "
        "`probe`: a linear classifier on image embeddings",
    )
    shots: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (), description="Training images per class of each linear probe; 0 means all; default: 5, 20, 50 and all"
    )
    precision: Precision = Field(
        "auto", description="Precision of torch models; `auto`: bf16 where this machine is faster with it, else fp32"
    )
    dims: int | None = Field(
        None,
        ge=8,
        le=8192,
        description="Numbers of an embedding that are used, for models trained with `dims`; null: all",
    )
    workers: int = Field(2, ge=1, le=256, description="Threads that read and resize images")


class IncompleteError(DcclipError):
    """Images that cannot be read, and the `results` that were measured without them."""

    results: Sequence[EvalResult] = ()


def check_complete(results: Sequence[EvalResult], options: EvalOptions) -> None:
    """Raise IncompleteError where results lack images that cannot be read, unless `options.partial` accepts that."""
    faults = {f"{one.dataset}: {key} ({why})" for one in results for key, why in one.corrupt.items()}
    if faults and options.partial == "no":
        error = IncompleteError(
            "the results lack {count:,} images that cannot be read: {first}",
            "copy them again, or accept that with --partial all (in a recipe: eval.partial)",
            count=len(faults),
            first=min(faults),
        )
        error.results = results
        raise error


def open_datasets(options: EvalOptions) -> list[DataSet]:
    """The data sets of `options.datasets`, groups expanded. Raises DcclipError for a missing or incomplete one."""
    root = Path(options.data_root) if options.data_root else None
    names = dict.fromkeys(name for given in options.datasets for name in registry.expand(given))
    opened = [
        open_dataset(name, options.languages, root, options.templates, options.task == "retrieval", options.partial)
        for name in names
    ]
    _check_names([dataset.name for dataset in opened])
    return opened


def check_datasets(options: EvalOptions) -> Iterator[DcclipError]:
    """What would keep `open_datasets` from opening the data sets, one error each; nothing is downloaded."""
    root = Path(options.data_root) if options.data_root else None
    called = []
    for name in dict.fromkeys(name for given in options.datasets for name in registry.expand(given)):
        try:
            called.append(check_dataset(name, options.languages, root, options.task, options.partial))
        except DcclipError as error:
            yield error
    try:
        _check_names(called)
    except DcclipError as error:
        yield error


def _check_names(called: Sequence[str]) -> None:
    if twice := [name for name in called if called.count(name) > 1]:
        raise DcclipError("two data sets are called {}", "rename one of the files or folders", twice[0])


def evaluate(
    models: Sequence[ModelReference],
    datasets: Sequence[DataSet],
    options: EvalOptions,
    *,
    device: str = "auto",
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> list[EvalResult]:
    """A result for each model, data set and language, in this order; for probes, for each number of shots.

    `datasets` are those of `open_datasets`. Models of the same name are told apart by their paths.
    """
    keep_freed_memory()
    progress, cache = progress or Silent(), cache or FeatureCache(None)
    by_model: list[list[EvalResult]] = []
    for reference in models:
        results = _of_model(reference, datasets, options, device, cache, progress)
        by_model.append(_with_immich(results, reference, options, progress))
    if len({result.model for several in by_model for result in several}) < len(models):
        by_model = [
            [replace(result, model=reference.target) for result in several]
            for reference, several in zip(models, by_model, strict=True)
        ]
    return [result for several in by_model for result in several]


def say_alike(results: Sequence[EvalResult], progress: Progress) -> None:
    """Say once which class names are replaced, and read alike: of one result, as each has its own in the report."""
    replaced, alike = [one for one in results if one.replaced], [one for one in results if one.indistinct]
    if replaced:
        pairs = ", ".join(f"{name} as {other}" for name, other in replaced[0].replaced.items())
        line = Message(
            "{}: the tokenizer reads these names like other classes; asked instead: {}", _where(replaced[0]), pairs
        )
        progress.say(line)
    if alike:
        worst = max(alike, key=lambda one: one.lost)
        example, more = " = ".join(worst.indistinct[0][:3]), len(alike) - 1
        line = Message(
            "{}: warning: the tokenizer reads {} classes like others, such as {}: at least {:.1f} points are lost{}",
            _where(worst),
            sum(map(len, worst.indistinct)),
            example,
            100 * worst.lost,
            Message(" (and {} more results)", more) if more else "",
        )
        progress.say(line)


def _where(result: EvalResult) -> str:
    return f"{result.dataset} {result.language}, {result.model}"


def _of_model(
    reference: ModelReference,
    datasets: Sequence[DataSet],
    options: EvalOptions,
    device: str,
    cache: FeatureCache,
    progress: Progress,
) -> list[EvalResult]:
    model = load_encoder(reference, device, options.precision, progress=progress)
    if isinstance(model, TorchEncoder) and model.precision != "fp32":
        for line in model.choice.lines(model.name):
            progress.say(line)
    short = shortened(model, options.dims, progress)
    evaluation = _Evaluation(Embedder(short, cache, progress, options.batch_size, options.workers), options)
    return [result for dataset in datasets for result in evaluation.results(dataset)]


def _with_immich(
    results: list[EvalResult], reference: ModelReference, options: EvalOptions, progress: Progress
) -> list[EvalResult]:
    """The results, those on all of XM3600 with immich's metric; the model that was measured is not loaded any more."""
    whole = [one for one in results if registry.base_name(one.dataset) == immich.DATASET and not one.limit]
    if not whole:
        return results
    progress.say(Message("{}: measuring memory and time for immich's metric", whole[0].model))
    cost = immich.cost_of(reference, options.precision)
    return [
        replace(one, immich=immich.metric(one.metrics, one.language, cost)) if one in whole else one for one in results
    ]


@dataclass(frozen=True)
class _Evaluation:
    """Measures one loaded model."""

    embedder: Embedder
    options: EvalOptions

    def results(self, dataset: DataSet) -> Iterator[EvalResult]:
        return self._probes(dataset) if self.options.task == "probe" else self._zero_shot(dataset)

    def _zero_shot(self, dataset: DataSet) -> Iterator[EvalResult]:
        every = images = self.embedder.images(dataset.images, dataset.transform, dataset.name, self.options.limit)
        for note in dataset.notes:
            self.embedder.progress.say(note)
        for language, truth in dataset.truth.items():
            begin = time.perf_counter()
            if isinstance(truth, Captions):
                images = _described(every, truth)
                score, task = self._retrieve(dataset, truth, images), "retrieval"
            else:
                asked = class_texts(self.embedder.model, truth.names, truth.alternates, truth.templates)
                classes = self.embedder.classes(asked.names, truth.templates)
                score = score_classes(images.vectors @ classes.T, truth.labels[images.indices], dataset.metric)
                task = "zero-shot classification"
            seconds = time.perf_counter() - begin
            result = self._result(dataset, language, truth, task, score, images, seconds)
            if isinstance(truth, Classes):
                result = self._with_alike(result, asked, truth, images)
                result = self._with_plain_names(result, classes, truth, dataset.metric, images)
            yield result

    def _with_plain_names(
        self, result: EvalResult, classes: np.ndarray, truth: Classes, metric: Metric, images: Embedded
    ) -> EvalResult:
        """The result with what plain names give, where the data set has any; `classes` are (C, D) for the others."""
        plain = {name: other for name, other in truth.plain_names.items() if name in truth.names}
        if not plain:
            return result
        classes = classes.copy()
        classes[[truth.names.index(name) for name in plain]] = self.embedder.classes([*plain.values()], truth.templates)
        labels = truth.labels[images.indices]
        value = score_classes(images.vectors @ classes.T, labels, metric).metrics[metric]
        names = ", ".join(f"{other} for {name}" for name, other in plain.items())
        self.embedder.progress.say(
            Message("{}: {:.1f} % with {}, {:.1f} % without", _where(result), 100 * value, names, 100 * result.value)
        )
        return replace(result, plain_names=plain, plain_value=value)

    def _with_alike(self, result: EvalResult, asked: ClassTexts, truth: Classes, images: Embedded) -> EvalResult:
        """The result with the class names that the tokenizer reads alike."""
        indistinct = [[truth.names[one] for one in group] for group in asked.alike]
        labels, cost = truth.labels[images.indices], 0.0
        if labels.ndim == 1 and result.metric in ("top1", "mean_per_class"):
            cost = lost(asked.alike, labels, result.metric == "mean_per_class")
        return replace(result, replaced=asked.replaced, indistinct=indistinct, lost=cost)

    def _retrieve(self, dataset: DataSet, truth: Captions, images: Embedded) -> Score:
        """Retrieval among the readable images; a text all of whose images are unreadable is left out."""
        row_of = {int(index): row for row, index in enumerate(images.indices)}
        kept = [number for number, about in enumerate(truth.about) if any(image in row_of for image in about)]
        texts = self.embedder.texts([truth.texts[number] for number in kept])
        about = [tuple(row_of[image] for image in truth.about[number] if image in row_of) for number in kept]
        return score_retrieval(images.vectors, texts, about, dataset.both_ways)

    def _probes(self, dataset: DataSet) -> Iterator[EvalResult]:
        import sklearn  # noqa: F401  # if it is missing, before the images are embedded

        training = training_split(dataset)
        [language, truth] = next(iter(dataset.truth.items()))  # a probe reads no text: one language is enough
        assert isinstance(truth, Classes) and isinstance(training.truth, np.ndarray)
        transform, limit = dataset.transform, self.options.limit
        test = self.embedder.images(dataset.images, transform, dataset.name, limit)
        train = self.embedder.images(training.images, transform, f"{dataset.name} train", limit)
        test = replace(test, corrupt=test.corrupt | {f"train {key}": why for key, why in train.corrupt.items()})
        train_labels, test_labels = training.truth[train.indices], truth.labels[test.indices]

        def score(shots: int, seed: int) -> Score:
            rows = probe.sample(train_labels, shots or None, seed)
            chosen = train.vectors[rows], train_labels[rows]
            return probe.probe(*chosen, test.vectors, test_labels, dataset.metric, seed)

        for shots in self.options.shots or (*probe.SHOTS, 0):
            begin = time.perf_counter()
            scores = [score(shots, seed) for seed in (probe.SEEDS if shots else probe.SEEDS[:1])]
            mean = Score(probe.summary(scores), scores[0].details)
            task = f"linear probe, {shots} shots" if shots else "linear probe"
            seconds = time.perf_counter() - begin
            yield self._result(dataset, language, replace(truth, templates=()), task, mean, test, seconds)

    def _result(
        self,
        dataset: DataSet,
        language: Language,
        truth: Classes | Captions,
        task: str,
        score: Score,
        images: Embedded,
        seconds: float,
    ) -> EvalResult:
        names, templates = (truth.names, truth.templates) if isinstance(truth, Classes) else ((), ())
        labels = score.details.get("labels", images.indices)
        model, limit = self.embedder.model, self.options.limit
        if not np.isfinite(value := score.metrics[dataset.metric]):
            what = Message(
                "data set {}: {} is not defined for {} images", dataset.name, dataset.metric, len(images.indices)
            )
            raise DcclipError("{} whose labels are all alike", "measure more images: a larger --limit, or none", what)
        return EvalResult(
            model=model.name,
            model_fingerprint=model.fingerprint,
            dataset=dataset.name,
            language=language,
            task=task,
            metric=dataset.metric,
            value=value,
            metrics=score.metrics,
            n=len(images.indices),
            classes=len(names),
            class_names_sha256=sha256_of(names if isinstance(truth, Classes) else truth.texts),
            templates_sha256=sha256_of(templates),
            preprocessing=dataset.transform.record(dict(model.preprocessing)),
            seconds=images.seconds + seconds,
            images_per_second=images.computed / images.seconds if images.computed else 0.0,
            versions=versions(),
            date=datetime.now(UTC).date().isoformat(),
            split=dataset.split,
            limit=limit if limit and limit < len(dataset.images) else None,
            partial=dataset.partial,
            precision=model.precision,
            truth_sha256=sha256_of([*map(str, labels.tolist()), *map(str, images.indices.tolist())]),
            corrupt=images.corrupt,
            class_names=list(names),
            templates=list(templates),
            details={name: pack(one) for name, one in score.details.items()},
        )


def _described(images: Embedded, captions: Captions) -> Embedded:
    """The images that some caption describes."""
    kept = np.isin(images.indices, [image for about in captions.about for image in about])
    return images if kept.all() else replace(images, indices=images.indices[kept], vectors=images.vectors[kept])
