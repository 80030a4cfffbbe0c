"""How good is a classification, or a search? Plain numpy, all values in 0..1.

Every measure takes `weights` (N,): how often each row counts. A bootstrap sample is nothing but weights.
What takes scores raises ValueError where one is NaN or infinite: NaN has no place in an order, and would be first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALLS = (1, 5, 10)
_BLOCK = 1024  # queries compared with all items at once


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) the place, from 0, of each row's label among its scores (N, C); of equal scores the lower class is first."""
    _check(scores)
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def top_k(ranks: np.ndarray, k: int, weights: np.ndarray | None = None) -> float:
    """The share of rows whose label is among the k best."""
    return float(np.average(ranks < k, weights=weights))


def per_class(ranks: np.ndarray, labels: np.ndarray, classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """(C,) top-1 of each class; NaN for a class without rows."""
    weights = np.ones(len(labels)) if weights is None else weights
    total = np.bincount(labels, weights, classes)
    right = np.bincount(labels, weights * (ranks == 0), classes)
    return np.divide(right, total, out=np.full(classes, np.nan), where=total > 0)


def mean_per_class(ranks: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Top-1 of each class that occurs in `labels`, averaged over these classes."""
    return float(np.nanmean(per_class(ranks, labels, int(labels.max()) + 1, weights)))


def roc_auc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The probability that a true row (N,) scores higher than a false one; equal scores count half."""
    weights = np.ones(len(truth)) if weights is None else weights
    _check(scores)
    values, place = np.unique(scores, return_inverse=True)
    true = np.bincount(place, weights * truth, len(values))
    false = np.bincount(place, weights * ~truth, len(values))
    below = np.cumsum(false) - false
    return float((true * (below + false / 2)).sum() / (true.sum() * false.sum()))


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The area under a class's precision-recall curve as sums of steps; equal scores (N,) are one step."""
    precision, recall = _curve(scores, truth, weights)
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def average_precision_11(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Pascal VOC 2007's: the best precision at recalls of at least 0, 0.1, ..., 1, averaged."""
    precision, recall = _curve(scores, truth, weights)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    # Rounded: a recall of 3/10 must not fall short of 0.3 by the last bit.
    places = np.searchsorted(np.round(recall, 12), np.round(np.arange(11) / 10, 12))
    return float(np.append(best, 0.0)[places].mean())


def _curve(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall when everything that scores at least so much is taken, for each score, the highest first."""
    weights = np.ones(len(truth)) if weights is None else weights
    _check(scores)
    values, place = np.unique(-scores, return_inverse=True)
    true = np.cumsum(np.bincount(place, weights * truth, len(values)))
    taken = np.cumsum(np.bincount(place, weights, len(values)))
    precision = np.divide(true, taken, out=np.ones(len(values)), where=taken > 0)
    return precision, true / max(true[-1], 1e-12)


def best_ranks(queries: np.ndarray, items: np.ndarray, wanted: Sequence[Sequence[int]]) -> np.ndarray:
    """(Q,) the place, from 0, of the first item that is `wanted`, when items (I, D) are sorted for each query (Q, D).

    Of equal scores the item with the lower number is first. Every query must want one.
    """
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _BLOCK):
        scores = queries[start : start + _BLOCK] @ items.T
        _check(scores)
        for row, line in enumerate(scores):
            own = np.asarray(wanted[start + row])
            best = own[np.lexsort((own, -line[own]))[0]]
            found[start + row] = (line > line[best]).sum() + (line[:best] == line[best]).sum()
    return found


def _check(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("scores that are not finite have no order")
