"""Zero-shot validation during training, in each language."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.batch import copy_to
from dcclip_cli.data.dataset import recipe_pairs
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import LANGUAGES, Language, PairDataset
from dcclip_cli.eval import metrics
from dcclip_cli.model.precision import finite
from dcclip_cli.model.preprocess import flatten
from dcclip_cli.model.towers import OpenClipTowers, evaluating
from dcclip_cli.train.distributed import from_all, process_count, process_index
from dcclip_cli.train.loading import load_batches

_ROWS = 64  # images or texts at once


def validate(
    towers: OpenClipTowers, dataset: PairDataset, languages: Sequence[Language], workers: int = 0
) -> dict[str, float]:
    """`top1_zh` and `top1_en`, in 0..1, of images whose different first captions are the class
    names.

    Each of the processes that train together computes a share; the result is that of one. A few
    images and their scores are in memory at a time, and the embeddings of all class names. The
    towers stay unchanged.
    """
    with evaluating(towers):
        classes = {}  # by language: embeddings of their names, and their numbers for all pairs
        for language in languages:
            numbers: dict[str, int] = {}  # a pair without a caption has none
            labels = (
                numbers.setdefault(texts[0], len(numbers)) if texts else -1
                for texts in dataset.captions(language)
            )
            labels_of_pairs = np.fromiter(labels, np.int32, len(dataset))
            chunks = chain.from_iterable(
                from_all(partial(_embed_names, towers, list(numbers)), stoppable=True)
            )
            classes[language] = (
                finite(np.concatenate([*chunks]), towers.name, "texts"),
                labels_of_pairs,
            )
        counts = chain.from_iterable(
            from_all(partial(_count_right, towers, dataset, classes, workers), stoppable=True)
        )
        right = map(sum, zip(*counts, strict=True))
    named = ((labels >= 0).sum() for _, labels in classes.values())
    return {
        f"top1_{code}": count / int(pairs)
        for code, count, pairs in zip(classes, right, named, strict=True)
    }


def _embed_names(towers: OpenClipTowers, names: list[str]) -> list[np.ndarray]:
    """The embeddings of this process's share of the names, by chunk."""
    device = next(towers.parameters()).device
    chunks = (
        towers.tokenize(names[rows.start : rows.stop]).to(device)
        for rows in _local_chunks(len(names))
    )
    return [_unit(towers.text_features(tokens).embedding) for tokens in chunks]


def _count_right(
    towers: OpenClipTowers,
    dataset: PairDataset,
    classes: Mapping[Any, tuple[np.ndarray, np.ndarray]],
    workers: int,
) -> list[list[float]]:
    """How many images of this process's share get their class, by chunk and language; ties count
    as a fraction.
    """
    device = next(towers.parameters()).device
    chunks = _local_chunks(len(dataset))
    counts = []
    workers = workers if chunks else 0  # where other processes have all of the images

    def read(rows: range) -> torch.Tensor:
        return torch.from_numpy(
            np.stack([towers.preprocess(flatten(dataset.decoded(row))) for row in rows])
        )

    loading = load_batches(read, chunks, workers, 1, device.type == "cuda")
    with closing(loading) as loaded:  # an error's traceback would keep the loader's processes
        for rows, pixels in zip(chunks, loaded, strict=True):
            features = towers.image_features(copy_to(pixels, device))
            images = finite(_unit(features.embedding), towers.name, "images")
            counts.append(list[float]())
            for embeddings, labels in classes.values():
                named = labels[rows] >= 0
                ranks, ties = metrics.ranks(images[named] @ embeddings.T, labels[rows][named])
                counts[-1].append(float(metrics.among_first(ranks, ties, 1).sum()))
    return counts


def open_validation(
    data: DataOptions, languages: Sequence[Language], workers: int = 0
) -> Callable[[OpenClipTowers], dict[str, float]]:
    """`validate` on the pairs in `data.validation`, in each language on those that have a caption
    in it.

    Raises DcclipError if none has.
    """
    dataset = recipe_pairs(data, "validation")
    assert dataset is not None  # the options were checked
    present = tuple(code for code in LANGUAGES if code in languages and any(dataset.captions(code)))
    if not present:
        raise DcclipError(
            "{}: no pair has a caption in {}",
            "use pairs that have such captions",
            dataset.path,
            ", ".join(languages),
        )
    return partial(validate, dataset=dataset, languages=present, workers=workers)


def _local_chunks(count: int) -> list[range]:
    """The rows that this process computes: whole chunks, so that each is computed as in one
    process.
    """
    chunks = range(0, count, _ROWS)
    process = process_index()
    processes = process_count()
    shares = chunks[len(chunks) * process // processes : len(chunks) * (process + 1) // processes]
    return [range(first, min(first + _ROWS, count)) for first in shares]


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    return F.normalize(embeddings.float(), dim=-1).cpu().numpy()
