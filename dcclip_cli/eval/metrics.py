"""How good a classification is: plain numpy, all values in 0..1."""

from __future__ import annotations

import numpy as np


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) the place, from 0, of each row's label among its scores (N, C); of equal scores the lower class is first."""
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def top_k(ranks: np.ndarray, k: int) -> float:
    """The share of rows whose label is among the k best."""
    return float((ranks < k).mean())


def mean_per_class(ranks: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 of each class that occurs in `labels`, averaged over these classes."""
    return float(np.mean([(ranks[labels == label] == 0).mean() for label in np.unique(labels)]))
