"""Where does a model go wrong on one data set: which classes, which pairs of them, which pictures?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.datasets import DataSet
from dcclip_cli.eval.embedding import chosen
from dcclip_cli.eval.metrics import per_class
from dcclip_cli.eval.result import EvalResult
from dcclip_cli.html import jpeg_thumbnail

WORST, PAIRS, PICTURES = 12, 12, 12


@dataclass(frozen=True)
class WeakClass:
    """A class, the share of its `n` images that were right, and what they were most taken for instead."""

    name: str
    share: float
    n: int
    taken_for: str


@dataclass(frozen=True)
class Confusion:
    """How many images of `truth` were taken for `guess`, and what share of them."""

    truth: str
    guess: str
    n: int
    share: float


@dataclass(frozen=True)
class Mistake:
    """An image, as a JPEG file, what it is and what it was taken for, and at which place the right class was."""

    key: str
    thumbnail: bytes
    truth: str
    guess: str
    place: int


@dataclass(frozen=True)
class Errors:
    """All that a report says about one model on one data set in one language."""

    result: EvalResult
    worst: tuple[WeakClass, ...]
    confusions: tuple[Confusion, ...]
    mistakes: tuple[Mistake, ...]


def errors_of(result: EvalResult, datasets: Mapping[str, DataSet]) -> Errors | None:
    """What went wrong; None for what has no single class an image. Pictures need the data set to be there."""
    labels, ranks, guesses = (result.detail(name) for name in ("labels", "ranks", "predictions"))
    if labels is None or ranks is None or guesses is None:
        return None
    names = result.class_names
    shares = per_class(ranks, labels, len(names))
    counts = np.bincount(labels, minlength=len(names))
    wrong = ranks > 0
    pairs: dict[tuple[int, int], int] = {}
    for truth, guess in zip(labels[wrong].tolist(), guesses[wrong].tolist(), strict=True):
        pairs[truth, guess] = pairs.get((truth, guess), 0) + 1
    by_count = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    most: dict[int, int] = {}
    for (truth, guess), _ in by_count:
        most.setdefault(truth, guess)
    weak = [number for number in np.argsort(shares, kind="stable") if counts[number] and shares[number] < 1]
    if counts.max() == 1:  # one image a class: the pairs say all of it
        weak = []
    return Errors(
        result,
        tuple(WeakClass(names[one], float(shares[one]), int(counts[one]), names[most[one]]) for one in weak[:WORST]),
        tuple(
            Confusion(names[truth], names[guess], count, count / int(counts[truth]))
            for (truth, guess), count in by_count[:PAIRS]
        ),
        tuple(_mistakes(result, labels, ranks, guesses, datasets.get(result.dataset))),
    )


def _mistakes(
    result: EvalResult, labels: np.ndarray, ranks: np.ndarray, guesses: np.ndarray, dataset: DataSet | None
) -> list[Mistake]:
    """A fixed random choice of wrong images, from as many classes as there are."""
    if dataset is None:
        return []
    rows = measured(result, dataset)
    if len(rows) != len(labels):
        return []
    wrong = np.random.default_rng(0).permutation(np.flatnonzero(ranks > 0))
    seen: dict[int, int] = {}
    order = []
    for row in wrong.tolist():
        seen[int(labels[row])] = seen.get(int(labels[row]), 0) + 1
        order.append((seen[int(labels[row])], row))
    found = []
    for _, row in sorted(order, key=lambda one: one[0])[:PICTURES]:
        try:
            thumbnail = jpeg_thumbnail(dataset.images.picture(int(rows[row])))
        except DcclipError:  # read before, gone since
            continue
        names = result.class_names
        truth, guess = names[int(labels[row])], names[int(guesses[row])]
        found.append(Mistake(str(dataset.images.keys[int(rows[row])]), thumbnail, truth, guess, int(ranks[row]) + 1))
    return found


def measured(result: EvalResult, dataset: DataSet) -> np.ndarray:
    """The numbers of the images that a result is about."""
    wanted = chosen(len(dataset.images), result.limit)
    return np.asarray([one for one in wanted.tolist() if str(dataset.images.keys[one]) not in result.corrupt])
