"""How good are these models on these test sets, in Chinese and in English?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from dcclip_cli.data.pair import Language
from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import LabelledImages, open_dataset
from dcclip_cli.eval.result import EvalResult, sha256_of
from dcclip_cli.eval.zeroshot import classify, embed_images
from dcclip_cli.model.reference import ModelReference
from dcclip_cli.options import Options
from dcclip_cli.predict.runtime import DualEncoder, load_model
from dcclip_cli.progress import Progress, Silent
from dcclip_cli.versions import versions


class EvalOptions(Options):
    """Which test sets a recipe's model is measured on."""

    datasets: tuple[str, ...] = Field(min_length=1, description="Names, Parquet or tar files of pairs, class folders")
    languages: tuple[Language, ...] | None = Field(None, description="Default: every language that a data set has")
    data_root: str | None = Field(None, description="Folder of the data sets with a name, as DATA_ROOT/NAME/")
    batch_size: int = Field(64, ge=1, description="Images that go through the model at once")
    limit: int | None = Field(None, ge=1, description="At most so many images of a data set, a fixed random choice")


def evaluate(
    *,
    models: Sequence[ModelReference],
    datasets: Sequence[str],
    languages: Sequence[Language] | None = None,
    data_root: Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[EvalResult]:
    """A result for each model, data set and language, in this order. Data sets are checked before any model runs.

    `languages` are those wanted of the user's own data sets; a data set with a name is in the one that its name says.
    """
    progress = progress or Silent()
    opened = [open_dataset(name, languages, data_root) for name in datasets]
    names = [dataset.name for dataset in opened]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DcclipError(f"two data sets are called {twice[0]}", "rename one of the files or folders")
    results = []
    for reference in models:
        model = load_model(reference, device)
        for dataset in opened:
            results += _evaluate_one(model, dataset, limit, batch_size, progress)
    return results


def _evaluate_one(
    model: DualEncoder, images: LabelledImages, limit: int | None, batch_size: int, progress: Progress
) -> list[EvalResult]:
    chosen = np.arange(images.count)
    if limit is not None and limit < images.count:
        chosen = np.sort(np.random.default_rng(0).permutation(images.count)[:limit])
    begin = time.perf_counter()
    with progress.task(f"{model.name} on {images.name}", len(chosen)) as task:
        embeddings = embed_images(model, images, chosen.tolist(), batch_size, task)
    image_seconds = time.perf_counter() - begin
    results = []
    for language, classes in images.classes.items():
        begin = time.perf_counter()
        metrics = classify(model, embeddings, classes.labels[chosen], classes)
        results.append(
            EvalResult(
                model=model.name,
                model_fingerprint=model.fingerprint,
                dataset=images.name,
                language=language,
                task="zero-shot classification",
                metric="top1",
                value=metrics["top1"],
                metrics=metrics,
                n=len(chosen),
                classes=len(classes.names),
                class_names_sha256=sha256_of(classes.names),
                templates_sha256=sha256_of(classes.templates),
                preprocessing=dict(model.preprocessing),
                seconds=image_seconds + time.perf_counter() - begin,
                images_per_second=len(chosen) / image_seconds,
                versions=versions(),
            )
        )
    return results
