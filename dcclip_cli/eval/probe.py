"""Linear probes: logistic regression on frozen image embeddings, with a few labelled images per class or all.

ELEVATER's protocol (arXiv 2204.08790, section 4): the same images for every model and seed, the regularisation chosen
on a held-out fifth of the training images, then a fit on all of them. Logistic regression instead of SGD, as in CLIP.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval.metrics import Score, score_classes
from dcclip_cli.eval.registry import Metric

SHOTS = (5, 20, 50)  # ELEVATER's
SEEDS = (0, 1, 2)
_STRENGTHS = tuple(10.0**power for power in (-3, -1, 1, 3, 5))  # 1 / regularisation, for embeddings of length 1
_FINER = tuple(10.0**power for power in (-1.0, -0.5, 0.0, 0.5, 1.0))  # around the best of them
_MAX_STEPS = 1000
_HELD_OUT = 0.2


def sample(labels: np.ndarray, shots: int | None, seed: int) -> np.ndarray:
    """The rows to train on: `shots` of each class, or as many as it has; all for None. `labels` as in Loaded."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if shots is None:
        return np.sort(order)
    chosen = {int(order[row]) for column in _one_hot(labels[order]).T for row in np.flatnonzero(column)[:shots]}
    return np.asarray(sorted(chosen))


def probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, metric: Metric, seed: int
) -> Score:
    """The metrics on the test images of a layer fitted to the training images; embeddings (N, D) and (M, D)."""
    held = _held_out(train_labels, seed)
    classes = max(_one_hot(labels).shape[1] for labels in (train_labels, test_labels))

    def on_held_out(strength: float) -> float:
        scores = _fit(train[~held], train_labels[~held], train[held], strength, classes)
        return score_classes(scores, train_labels[held], metric).metrics[metric]

    strength = 1.0
    # Nothing to choose by: one image per class, or held-out images on which the metric is not defined.
    measured = {value: on_held_out(value) for value in _STRENGTHS} if held.any() else {}
    if measured and not np.isnan([*measured.values()]).any():
        coarse = max(measured, key=measured.__getitem__)
        measured |= {coarse * factor: on_held_out(coarse * factor) for factor in _FINER if factor != 1.0}
        strength = max(measured, key=measured.__getitem__)
    return score_classes(_fit(train, train_labels, test, strength, classes), test_labels, metric)


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of every metric over the seeds, and the standard deviation where there are several."""
    names = scores[0].metrics
    found = {name: float(np.mean([score.metrics[name] for score in scores])) for name in names}
    if len(scores) > 1:
        found |= {f"{name}_std": float(np.std([score.metrics[name] for score in scores], ddof=1)) for name in names}
    return found


def _held_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """(N,) whether a row is held out: a fifth of each class's, at least one, where it has two."""
    held = np.zeros(len(labels), bool)
    columns = _one_hot(labels)
    random = np.random.default_rng(seed)
    for column in columns.T:
        rows = random.permutation(np.flatnonzero(column))
        if len(rows) > 1:
            held[rows[: max(1, int(len(rows) * _HELD_OUT))]] = True
    if labels.ndim == 2:  # every class keeps a row to train on
        for column in columns.T:
            if column.any() and not (column & ~held).any():
                held[np.flatnonzero(column)[0]] = False
    return held


def _one_hot(labels: np.ndarray) -> np.ndarray:
    """(N, C) truth values of labels (N,); truth values are returned as they are."""
    return labels if labels.ndim == 2 else np.eye(int(labels.max()) + 1, dtype=bool)[labels]


def _fit(train: np.ndarray, labels: np.ndarray, test: np.ndarray, strength: float, classes: int) -> np.ndarray:
    """(M, C) scores of the test rows; a class without training rows is never predicted."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fitted(truth: np.ndarray) -> LogisticRegression:
        if len(np.unique(truth)) < 2:
            raise DcclipError("all training images are of one class", "probes need at least two classes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # expected for weak regularisation
            return LogisticRegression(C=strength, max_iter=_MAX_STEPS).fit(train, truth)

    if labels.ndim == 2:
        return np.stack([fitted(column).decision_function(test) for column in labels.T], axis=1) / 100
    found = fitted(labels)
    scores = found.decision_function(test)
    if scores.ndim == 1:  # two classes: one column, the score of the second
        scores = np.stack([-scores, scores], axis=1)
    whole = np.full((len(test), classes), scores.min() - 1)
    whole[:, found.classes_] = scores
    return whole
