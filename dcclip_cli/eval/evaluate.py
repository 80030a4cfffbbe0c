"""Evaluate models on test sets, in Chinese and in English: zero-shot, retrieval, probes, and twins
of queries.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dcclip_cli.core.errors import DcclipError, Message, joined
from dcclip_cli.core.machine import keep_freed_memory
from dcclip_cli.core.options import Dims, Options
from dcclip_cli.core.progress import Progress, Silent
from dcclip_cli.core.versions import versions
from dcclip_cli.data.pair import Language
from dcclip_cli.eval import metrics, registry
from dcclip_cli.eval.dataset import Captions, Classes, DataSet
from dcclip_cli.eval.datasets import Part, Templates, check_dataset, open_dataset, training_split
from dcclip_cli.eval.embedding import Embedded, Embedder, FeatureCache, class_vectors
from dcclip_cli.eval.metrics import Score
from dcclip_cli.eval.result import ZERO_SHOT, EvalResult, pack, sha256_of
from dcclip_cli.eval.twins import check_queries, no_queries, open_twins, score_twins, worst_twins
from dcclip_cli.inference.encoder import TorchEncoder, load_encoder, shortened
from dcclip_cli.model.reference import ModelSource

_MORE_IMAGES = Message("evaluate more images: increase or remove --limit")


class EvalOptions(Options):
    """Test sets and evaluation settings."""

    datasets: tuple[str, ...] = Field(
        min_length=1,
        description="Data set names or groups, Parquet or tar files of pairs, folders of class folders",
    )
    languages: tuple[Language, ...] | None = Field(
        None,
        description="Languages of your own data sets; default: every language that a data set has",
    )
    data_root: str | None = Field(
        None, description="Folder of the named data sets, each in DATA_ROOT/NAME/"
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="Images per batch")
    limit: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="Maximum images per data set, a fixed random sample",
    )
    partial: Part = Field(
        "no",
        description="Accept unreadable images and incomplete data sets: `all` classifies among "
        "all classes, "
        "`present` among those with images; such results are marked and cannot be "
        "compared with complete ones",
    )
    templates: Templates = Field(
        "own",
        description="Prompt templates: the data set's `own`, a few generic ones (`compact`), or "
        "the bare `name`",
    )
    task: Literal["zero-shot", "retrieval", "probe", "twins"] = Field(
        "zero-shot",
        description="`zero-shot` classification; `retrieval`: all captions of your own pairs are "
        "texts to retrieve; "
        "`probe`: a linear classifier on image embeddings; `twins`: whether a query in "
        "Chinese and in English returns "
        "the same images",
    )
    queries: str | None = Field(
        None,
        description="Queries of `twins`: a named data set, whose class names they are, or a "
        ".tsv, .csv or .jsonl file "
        "of texts in English and Chinese; default: the data set's class names, or the "
        "first captions of its images",
    )
    shots: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (),
        description="Training images per class of each linear probe; 0 means all; default: 5, "
        "20, 50 and all",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Precision of torch models")
    dims: Dims | None = Field(
        None,
        description="Number of leading dimensions of embeddings to use, for models trained with "
        "`dims`; null: all",
    )
    workers: int = Field(2, ge=1, le=256, description="Threads that read and resize images")

    @property
    def names(self) -> list[str]:
        """The data sets, groups expanded, each once; of twins both languages are one, in groups
        those with queries.
        """
        if self.task != "twins":
            return list(
                dict.fromkeys(
                    name for dataset in self.datasets for name in registry.expand(dataset)
                )
            )
        names: dict[str, None] = {}
        for dataset in self.datasets:
            for name in registry.expand(dataset):
                named = registry.find(name)
                if name == dataset or self.queries or registry.has_twins(name):
                    names[
                        registry.name_in(named[0], registry.languages_of(named[0])[-1])
                        if named
                        else name
                    ] = None
        return list(names)


class IncompleteError(DcclipError):
    """Images that cannot be read, and the `results` that were measured without them."""

    results: Sequence[EvalResult] = ()


def check_complete(results: Sequence[EvalResult], options: EvalOptions) -> None:
    """Raise IncompleteError where results lack images that cannot be read, unless
    `options.partial` accepts that.
    """
    faults = {
        f"{result.dataset}: {key} ({why})"
        for result in results
        for key, why in result.corrupt.items()
    }
    if faults and options.partial == "no":
        error = IncompleteError(
            Message("the results lack {:,} unreadable images: {}", len(faults), min(faults)),
            Message(
                "copy the images again, or accept this with --partial all (in a recipe: "
                "eval.partial)"
            ),
        )
        error.results = results
        raise error


def _unused(options: EvalOptions) -> Iterator[DcclipError]:
    """An error for each option that would change no result, and for groups without any queries of
    twins.
    """
    names = options.names
    if not names:
        yield no_queries(", ".join(options.datasets))
        return
    kinds = {named[0].task if named else "own" for named in map(registry.find, names)}
    with_classes = {"classification", "multi-label"}
    prompted = {
        "zero-shot": {"own", *with_classes},
        "twins": {"own", *with_classes},
        "retrieval": with_classes,
    }
    has_effect = {
        "languages": "own" in kinds and options.task != "twins",
        "queries": options.task == "twins",
        "task": options.task != "retrieval" or "own" in kinds,
        "templates": bool(options.queries or kinds & prompted.get(options.task, set())),
        "shots": options.task == "probe",
    }
    for name, is_effective in has_effect.items():
        if not is_effective and getattr(options, name) != EvalOptions.model_fields[name].default:
            hint = Message("remove --{0} (in a recipe: eval.{0})", name)
            yield DcclipError("--{} has no effect on these data sets with this task", hint, name)


def open_datasets(options: EvalOptions) -> list[DataSet]:
    """The data sets, groups expanded. Raises DcclipError for a missing one, and an option that has
    no effect on any.
    """
    for unused in _unused(options):
        raise unused
    root = Path(options.data_root) if options.data_root else None
    names = options.names
    opened = [
        open_twins(name, root, options.templates, options.partial, options.queries or "")
        if options.task == "twins"
        else open_dataset(
            name,
            options.languages,
            root,
            options.templates,
            options.task == "retrieval",
            options.partial,
        )
        for name in names
    ]
    if error := _twice([dataset.name for dataset in opened]):
        raise error
    expanded = (
        (dataset, name) for dataset in options.datasets for name in registry.expand(dataset)
    )
    in_groups = {registry.base_name(name) for dataset, name in expanded if name != dataset}
    if skipped := sorted(in_groups - set(map(registry.base_name, names))):
        note = Message(
            "skipped, without class names that differ between English and Chinese: {}",
            ", ".join(skipped),
        )
        opened[0] = replace(opened[0], notes=(*opened[0].notes, note))
    return opened


def check_datasets(options: EvalOptions) -> Iterator[DcclipError]:
    """What would keep `open_datasets` from opening the data sets, one error each; nothing is
    downloaded.
    """
    yield from _unused(options)
    root = Path(options.data_root) if options.data_root else None
    if options.task == "twins" and options.queries:
        try:
            check_queries(options.queries)
        except DcclipError as error:
            yield error
            return
    names = []
    for name in options.names:
        try:
            if options.task == "twins" and registry.find(name) is None:
                names.append(
                    open_twins(
                        name, root, options.templates, options.partial, options.queries or ""
                    ).name
                )
            else:
                names.append(
                    check_dataset(name, options.languages, root, options.task, options.partial)
                )
        except DcclipError as error:
            yield error
    if duplicate := _twice(names):
        yield duplicate


def _twice(names: Sequence[str]) -> DcclipError | None:
    twice = [name for name in names if names.count(name) > 1]
    return (
        DcclipError(
            "two data sets have the name {}", "rename one of the files or folders", twice[0]
        )
        if twice
        else None
    )


def evaluate(
    models: Sequence[ModelSource],
    datasets: Sequence[DataSet],
    options: EvalOptions,
    *,
    device: str = "auto",
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> list[EvalResult]:
    """A result for each model, data set of `open_datasets`, language, and of probes each number of
    shots.
    """
    keep_freed_memory()
    progress = progress or Silent()
    cache = cache or FeatureCache(None)
    measured: list[tuple[ModelSource, EvalResult]] = []
    for reference in models:
        model = load_encoder(reference, device, options.precision, progress=progress)
        if isinstance(model, TorchEncoder) and model.precision != "fp32":
            progress.say(model.choice.line(model.name))
        short = shortened(model, options.dims, progress)
        evaluation = _Evaluation(
            Embedder(short, cache, progress, options.batch_size, options.workers), options
        )
        results = {"probe": evaluation.probes, "twins": evaluation.twins}.get(
            options.task, evaluation.zero_shot
        )
        measured += [(reference, result) for dataset in datasets for result in results(dataset)]
    if len({result.model for _, result in measured}) < len(models):
        return [replace(result, model=reference.target) for reference, result in measured]
    return [result for _, result in measured]


def say_alike(results: Sequence[EvalResult], progress: Progress) -> None:
    """Say once which class names are replaced, and are one embedding: of one result; the report
    has those of each.
    """
    if replaced := next((result for result in results if result.replaced), None):
        pairs = joined(", ", (Message("{} by {}", *pair) for pair in replaced.replaced.items()))
        where = _where(replaced)
        line = Message(
            "{}: these class names have the same embedding as another class and are replaced: {}",
            where,
            pairs,
        )
        progress.say(line)
    if alike := sorted(
        (result for result in results if result.indistinct), key=lambda result: -result.lost
    ):
        worst = alike[0]
        further = Message(" (and {} more results)", len(alike) - 1) if len(alike) > 1 else ""
        lost = (
            Message(": ties decide {:.1f} % of the answers", 100 * worst.lost) if worst.lost else ""
        )
        line = Message(
            "{}: warning: {} classes share an embedding with another class, such as {}{}{}",
            _where(worst), sum(map(len, worst.indistinct)), " = ".join(worst.indistinct[0][:3]), lost, further,
        )  # fmt: skip
        progress.say(line)


def _where(result: EvalResult) -> str:
    return f"{result.dataset} {result.language}, {result.model}"


@dataclass(frozen=True)
class _Evaluation:
    embedder: Embedder
    options: EvalOptions

    def zero_shot(self, dataset: DataSet) -> Iterator[EvalResult]:
        images = self.embedder.images(
            dataset.images, dataset.transform, dataset.name, self.options.limit
        )
        for note in dataset.notes:
            self.embedder.progress.say(note)
        for language, truth in dataset.truth.items():
            begin = time.perf_counter()
            if isinstance(truth, Classes):
                metric = dataset.metric
                labels = truth.labels[images.indices]
                classes = class_vectors(self.embedder, truth)
                scores = metrics.level(images.vectors @ classes.vectors.T, classes.alike)
                score = metrics.score_classes(scores, labels, metric)
                result = self._result(dataset, language, truth, ZERO_SHOT, score, images, begin)
                alike = [[truth.names[number] for number in group] for group in classes.alike]
                by_tie = metrics.tied_answers(scores) if labels.ndim == 1 else 0.0
                result = replace(result, replaced=classes.replaced, indistinct=alike, lost=by_tie)
                if plain := {
                    name: text for name, text in truth.plain_names.items() if name in truth.names
                }:
                    vectors = classes.vectors.copy()
                    numbers = [truth.names.index(name) for name in plain]
                    vectors[numbers] = self.embedder.classes([*plain.values()], truth.templates)
                    scores = metrics.level(images.vectors @ vectors.T, metrics.tied_groups(vectors))
                    value = metrics.score_classes(scores, labels, metric).metrics[metric]
                    names = joined(
                        ", ", (Message("{} for {}", text, name) for name, text in plain.items())
                    )
                    line = _where(result), 100 * value, names, 100 * result.value
                    self.embedder.progress.say(
                        Message("{}: {:.1f} % with {}, {:.1f} % without", *line)
                    )
                    result = replace(result, plain_names=plain, plain_value=value)
                yield result
                continue
            # Retrieval among the readable images with captions; a text all of whose images are
            # unreadable is left out.
            rows = np.flatnonzero(np.isin(images.indices, list(chain(*truth.images))))
            if not len(rows):
                where = dataset.name, len(images.indices), language
                raise DcclipError(
                    "data set {}: none of {:,} images has a caption in {}", _MORE_IMAGES, *where
                )
            shown = replace(images, indices=images.indices[rows], vectors=images.vectors[rows])
            row_of = {int(index): row for row, index in enumerate(shown.indices)}
            targets = [
                tuple(row_of[image] for image in numbers if image in row_of)
                for numbers in truth.images
            ]
            texts = self.embedder.texts(
                [text for text, rows in zip(truth.texts, targets, strict=True) if rows]
            )
            score = metrics.score_retrieval(
                shown.vectors, texts, list(filter(None, targets)), dataset.both_ways
            )
            yield self._result(dataset, language, truth, "retrieval", score, shown, begin)

    def twins(self, dataset: DataSet) -> Iterator[EvalResult]:
        """A result for each data set: English queries against Chinese ones, which are Simplified
        and Traditional.
        """
        import opencc

        images = self.embedder.images(
            dataset.images, dataset.transform, dataset.name, self.options.limit
        )
        begin = time.perf_counter()
        deepest = max(metrics.TWIN_TOPS)
        if len(images.indices) <= deepest:
            where = dataset.name, deepest, len(images.indices)
            raise DcclipError(
                "data set {}: overlap@{} is not defined for {} images", _MORE_IMAGES, *where
            )
        english = dataset.truth["en"]
        chinese = dataset.truth["zh"]
        assert isinstance(english, Classes) and isinstance(chinese, Classes)
        texts = [*zip(english.names, chinese.names, strict=True)]
        convert: Callable[[str], str] = opencc.OpenCC("s2t").convert
        traditional = replace(
            chinese,
            names=tuple(map(convert, chinese.names)),
            templates=tuple(map(convert, chinese.templates)),
        )
        languages = (english, chinese, traditional)
        vectors = [self.embedder.classes(classes.names, classes.templates) for classes in languages]
        is_known = np.ones(len(texts), bool)
        if vocabulary := self.embedder.model.known:
            bare = np.stack(
                [
                    self.embedder.texts(classes.names)[:, vocabulary.dimension]
                    for classes in languages[:2]
                ]
            )
            is_known = bare.max(axis=0) <= vocabulary.most
        is_traditional = np.asarray(chinese.names) != np.asarray(traditional.names)
        score = score_twins(vectors, images.vectors, texts, is_traditional, is_known)
        truth = Classes(
            tuple(map(" = ".join, texts)), english.labels, (*english.templates, *chinese.templates)
        )
        result = self._result(dataset, "zh", truth, "twins", score, images, begin)
        unknown = [" = ".join(texts[number]) for number in np.flatnonzero(~is_known)]
        counts = _where(result), len(unknown), len(texts), ", ".join(unknown[:3])
        line = Message(
            "{}: {:,} of {:,} queries are unknown to the model and not in the list: {}", *counts
        )
        for note in [*dataset.notes, line] if unknown else dataset.notes:
            self.embedder.progress.say(note)
        yield replace(result, twins=worst_twins(texts, score.details))

    def probes(self, dataset: DataSet) -> Iterator[EvalResult]:
        """A result for each number of training images per class."""
        import sklearn  # noqa: F401  # if it is missing, before the images are embedded

        training = training_split(dataset)
        [language, truth] = next(
            iter(dataset.truth.items())
        )  # a probe reads no text: one language is enough
        assert isinstance(truth, Classes) and isinstance(training.truth, np.ndarray)
        transform = dataset.transform
        limit = self.options.limit
        test = self.embedder.images(dataset.images, transform, dataset.name, limit)
        train = self.embedder.images(training.images, transform, f"{dataset.name} train", limit)
        test = replace(
            test, corrupt=test.corrupt | {f"train {key}": why for key, why in train.corrupt.items()}
        )
        train_labels = training.truth[train.indices]
        test_labels = truth.labels[test.indices]

        for shots in self.options.shots or (*metrics.SHOTS, 0):
            begin = time.perf_counter()
            scores = []
            for seed in metrics.SEEDS if shots else metrics.SEEDS[:1]:
                rows = metrics.sample(train_labels, shots or None, seed)
                splits = train.vectors[rows], train_labels[rows], test.vectors, test_labels
                scores.append(metrics.probe(*splits, dataset.metric, seed))
            mean = Score(metrics.summary(scores), scores[0].details)
            task = f"linear probe, {shots} shots" if shots else "linear probe"
            yield self._result(
                dataset, language, replace(truth, templates=()), task, mean, test, begin
            )

    def _result(
        self,
        dataset: DataSet,
        language: Language,
        truth: Classes | Captions,
        task: str,
        score: Score,
        images: Embedded,
        begin: float,
    ) -> EvalResult:
        names, templates = (
            (truth.names, truth.templates) if isinstance(truth, Classes) else ((), ())
        )
        labels = score.details.get("labels", images.indices)
        model = self.embedder.model
        limit = self.options.limit
        if not np.isfinite(value := score.metrics[dataset.metric]):
            raise DcclipError(
                "data set {}: {} is not defined for {} images with the same label",
                _MORE_IMAGES,
                dataset.name, dataset.metric, len(images.indices),
            )  # fmt: skip
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
            seconds=images.seconds + time.perf_counter() - begin,
            images_per_second=images.computed / images.seconds if images.computed else 0.0,
            versions=versions(),
            date=datetime.now(UTC).date().isoformat(),
            split=dataset.split,
            limit=limit if limit and limit < len(dataset.images) else None,
            partial=dataset.partial,
            precision=model.precision,
            truth_sha256=sha256_of(
                [*map(str, labels.tolist()), *map(str, images.indices.tolist())]
            ),
            corrupt=images.corrupt,
            class_names=list(names),
            templates=list(templates),
            details={name: pack(array) for name, array in score.details.items()},
        )
