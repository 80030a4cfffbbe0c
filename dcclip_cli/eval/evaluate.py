"""How good are these models on these test sets, in Chinese and in English?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import probe, registry
from dcclip_cli.eval.datasets import Captions, Classes, DataSet, Templates, open_dataset, training_split
from dcclip_cli.eval.embedding import Embedded, View, chosen, embed_classes, embed_images, embed_texts
from dcclip_cli.eval.feature_cache import FeatureCache
from dcclip_cli.eval.loaders import Images
from dcclip_cli.eval.processes import EvalProcesses
from dcclip_cli.eval.result import EvalResult, pack, sha256_of
from dcclip_cli.eval.scoring import Score, score_classes, score_retrieval
from dcclip_cli.model.precision import Precision
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.options import Options
from dcclip_cli.predict.encoder import Encoder, TorchEncoder, load_encoder
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.versions import versions

Task = Literal["zero-shot", "retrieval", "probe"]
_NAMED_FAULTS = 3  # unreadable images that are named on the terminal; the result names all


class EvalOptions(Options):
    """Which test sets a recipe's model is measured on."""

    datasets: tuple[str, ...] = Field(
        min_length=1, description="Names, groups, Parquet or tar files of pairs, class folders"
    )
    languages: tuple[Language, ...] | None = Field(None, description="Default: every language that a data set has")
    data_root: str | None = Field(None, description="Folder of the data sets with a name, as DATA_ROOT/NAME/")
    batch_size: int = Field(64, ge=1, description="Images that go through the model at once")
    limit: int | None = Field(None, ge=1, description="At most so many images of a data set, a fixed random choice")
    templates: Templates = Field(
        "own", description="Prompts: the data set's `own`, a few `compact` ones for all, or the bare `name`"
    )
    task: Task = Field(
        "zero-shot",
        description="`retrieval`: captions of one's own pairs as texts to find; `probe`: a linear layer on embeddings",
    )
    shots: tuple[int, ...] = Field(
        (), description="Images a class that probes are trained on; 0 means all; default: 5, 20, 50 and all"
    )
    precision: Precision = Field(
        "auto",
        description="What torch computes in; `auto`: bf16 where this machine is faster with it",
    )
    workers: int = Field(2, ge=1, description="Threads that read and scale images, in each process")
    processes: int = Field(
        1, ge=1, description="Processes that share the images of a data set, each with the model; a GPU each"
    )


@dataclass(frozen=True)
class How:
    """What is the same for every data set of a run."""

    limit: int | None
    batch_size: int
    workers: int
    cache: FeatureCache
    progress: Progress
    task: Task = "zero-shot"
    shots: tuple[int, ...] = ()
    processes: EvalProcesses | None = None


def open_datasets(
    names: Sequence[str],
    languages: Sequence[Language] | None = None,
    data_root: Path | None = None,
    templates: Templates = "own",
    task: Task = "zero-shot",
) -> list[DataSet]:
    """The data sets of these names and groups. Raises DcclipError for the first that is not there or not whole."""
    every = list(dict.fromkeys(one for name in names for one in registry.expand(name)))
    opened = [open_dataset(name, languages, data_root, templates, task == "retrieval") for name in every]
    called = [dataset.name for dataset in opened]
    if twice := [name for name in called if called.count(name) > 1]:
        raise DcclipError(f"two data sets are called {twice[0]}", "rename one of the files or folders")
    return opened


def evaluate(
    *,
    models: Sequence[ModelReference],
    datasets: Sequence[DataSet],
    limit: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
    task: Task = "zero-shot",
    shots: Sequence[int] = (),
    device: str = "auto",
    precision: Precision = "auto",
    processes: int = 1,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> list[EvalResult]:
    """A result for each model, data set and language, in this order; for probes, for each number of shots."""
    how = How(limit, batch_size, workers, cache or FeatureCache(None), progress or Silent(), task, tuple(shots))
    results: list[EvalResult] = []
    for reference in models:
        model = load_encoder(reference, device, precision)
        if isinstance(model, TorchEncoder) and model.precision != "fp32":
            for line in model.choice.lines(model.name):
                how.progress.say(line)
        with contextlib.ExitStack() as stack:
            if processes > 1:
                same: Precision = "bf16" if model.precision == "bf16" else "fp32"  # decided once, for all of them
                many = stack.enter_context(EvalProcesses(reference, device, same, processes))
                how = replace(how, processes=many)
            for dataset in datasets:
                results += _probes(model, dataset, how) if task == "probe" else _zero_shot(model, dataset, how)
    return results


def _zero_shot(model: Encoder, dataset: DataSet, how: How) -> Iterator[EvalResult]:
    embedded = _embed(model, dataset, dataset.images, how)
    for language, truth in dataset.truth.items():
        begin = time.perf_counter()
        if isinstance(truth, Captions):
            score, names = _retrieve(model, dataset, truth, embedded, how), truth.texts
            yield _result(model, dataset, language, "retrieval", score, embedded, how, begin, names, ())
            continue
        texts = embed_classes(model, truth.names, truth.templates, how.cache, how.progress)
        score = score_classes(embedded.vectors @ texts.T, truth.labels[embedded.indices], dataset.metric)
        task = "zero-shot classification"
        yield _result(model, dataset, language, task, score, embedded, how, begin, truth.names, truth.templates)


def _retrieve(model: Encoder, dataset: DataSet, truth: Captions, embedded: Embedded, how: How) -> Score:
    """Retrieval among the images that there are; a text whose images are all left out is left out too."""
    place = {int(index): row for row, index in enumerate(embedded.indices)}
    kept = [number for number, about in enumerate(truth.about) if any(image in place for image in about)]
    texts = embed_texts(model, [truth.texts[number] for number in kept], how.cache, how.progress)
    about = [tuple(place[image] for image in truth.about[number] if image in place) for number in kept]
    return score_retrieval(embedded.vectors, texts, about, dataset.both_ways)


def _probes(model: Encoder, dataset: DataSet, how: How) -> Iterator[EvalResult]:
    train = training_split(dataset)
    [language, truth] = next(iter(dataset.truth.items()))  # a layer knows no language
    assert isinstance(truth, Classes)
    test = _embed(model, dataset, dataset.images, how)
    learnt = _embed(model, dataset, train.images, how, f"{dataset.name} train")
    train_labels, test_labels = train.labels[learnt.indices], truth.labels[test.indices]
    for shots in how.shots or (*probe.SHOTS, 0):
        begin = time.perf_counter()
        scores = []
        for seed in probe.SEEDS if shots else probe.SEEDS[:1]:
            rows = probe.sample(train_labels, shots or None, seed)
            scores.append(
                probe.probe(learnt.vectors[rows], train_labels[rows], test.vectors, test_labels, dataset.metric, seed)
            )
        mean = Score(probe.summary(scores), scores[0].details)
        task = f"linear probe, {shots} shots" if shots else "linear probe"
        yield _result(model, dataset, language, task, mean, test, how, begin, truth.names, ())


def _embed(model: Encoder, dataset: DataSet, images: Images, how: How, name: str = "") -> Embedded:
    wanted = chosen(len(images), how.limit)
    name = name or dataset.name
    view = View(dataset.squash, dataset.border)
    said = f"{model.name} on {name}"
    embed = how.processes.embed_batches if how.processes else None
    found = embed_images(model, images, wanted, view, how.cache, how.progress, said, how.batch_size, how.workers, embed)
    if found.faults:
        some = [f"{images.keys[index]} ({fault})" for index, fault in list(found.faults.items())[:_NAMED_FAULTS]]
        more = f", and {len(found.faults) - len(some)} more" if len(found.faults) > len(some) else ""
        how.progress.say(
            f"data set {name}: {len(found.faults):,} of {len(wanted):,} images can't be read and are left out: "
            f"{', '.join(some)}{more}"
        )
    return found


def _result(
    model: Encoder,
    dataset: DataSet,
    language: Language,
    task: str,
    score: Score,
    embedded: Embedded,
    how: How,
    begin: float,
    names: Sequence[str],
    templates: Sequence[str],
) -> EvalResult:
    retrieval = dataset.is_retrieval
    labels = score.details["labels"] if "labels" in score.details else np.asarray(embedded.indices)
    return EvalResult(
        model=model.name,
        model_fingerprint=model.fingerprint,
        dataset=dataset.name,
        language=language,
        task=task,
        metric=dataset.metric,
        value=score.metrics[dataset.metric],
        metrics=score.metrics,
        n=len(embedded.indices),
        classes=0 if retrieval else len(names),
        class_names_sha256=sha256_of(names),
        templates_sha256=sha256_of(templates),
        preprocessing=View(dataset.squash, dataset.border).of(dict(model.preprocessing)),
        seconds=embedded.seconds + time.perf_counter() - begin,
        images_per_second=embedded.computed / embedded.seconds if embedded.computed else 0.0,
        versions=versions(),
        split=dataset.split,
        limit=how.limit if how.limit and how.limit < len(dataset.images) else None,
        precision=model.precision,
        truth_sha256=sha256_of([*map(str, labels.tolist()), *map(str, embedded.indices.tolist())]),
        corrupt={str(dataset.images.keys[index]): fault for index, fault in embedded.faults.items()},
        class_names=[] if retrieval else list(names),
        templates=list(templates),
        details={name: pack(one) for name, one in score.details.items()},
    )
