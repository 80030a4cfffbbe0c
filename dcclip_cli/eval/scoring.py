"""What do embeddings come to, as figures? Zero-shot classification of one or several classes, and retrieval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dcclip_cli.eval import metrics
from dcclip_cli.eval.registry import Metric

_SCALE = 100.0  # ELEVATER's, before the softmax over classes that its mAP and AUC are of


@dataclass(frozen=True)
class Score:
    """All figures of one data set, and what was found of each image or text."""

    metrics: dict[str, float]
    details: dict[str, np.ndarray]


def score_classes(scores: np.ndarray, labels: np.ndarray, metric: Metric) -> Score:
    """The figures of scores (N, C), cosines or a probe's logits, for labels (N,) or truth values (N, C)."""
    if labels.ndim == 2:
        details = {"labels": labels, "scores": _softmax(_SCALE * scores), "cosines": scores}
    else:
        ranks = metrics.ranks(scores, labels)
        details = {"labels": labels, "ranks": ranks, "predictions": scores.argmax(axis=1)}
        if metric == "roc_auc":
            details["scores"] = _softmax(_SCALE * scores)[:, 1]
    return Score(figures(details), {name: one for name, one in details.items() if name != "cosines"})


def score_retrieval(
    images: np.ndarray, texts: np.ndarray, about: Sequence[Sequence[int]], both_ways: bool = True
) -> Score:
    """Recall at 1, 5, 10 of images (N, D) by texts (M, D), text j being about the images `about[j]`, and the reverse.

    A query has found what it wants if any of it is among the first k. `mean_recall` is the mean of all of them.
    """
    details = {"image_ranks": metrics.best_ranks(texts, images, about)}
    if both_ways:
        texts_of: list[list[int]] = [[] for _ in range(len(images))]
        for number, several in enumerate(about):
            for image in several:
                texts_of[image].append(number)
        asking = [number for number, several in enumerate(texts_of) if several]
        details["text_ranks"] = metrics.best_ranks(images[asking], texts, [texts_of[number] for number in asking])
    return Score(figures(details), details)


def figures(
    details: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray] | None = None,
    wanted: Sequence[str] | None = None,
) -> dict[str, float]:
    """The figures that details come to, all of them or those `wanted`.

    `weights` has those of the rows of `labels`, `image_ranks` and `text_ranks`.
    """
    weigh = weights or {}
    if "labels" not in details:
        return _recalls(details, weigh)
    labels, own = details["labels"], weigh.get("labels")
    measures: dict[str, Callable[[], float]] = {}
    if labels.ndim == 2:
        measures["map11"] = lambda: _mean(metrics.average_precision_11, details["scores"], labels, own)
        if "cosines" in details:  # CLIP_benchmark's: no softmax before it
            measures["map"] = lambda: _mean(metrics.average_precision, details["cosines"], labels, own)
    else:
        ranks = details["ranks"]
        measures["top1"] = lambda: metrics.top_k(ranks, 1, own)
        measures["top5"] = lambda: metrics.top_k(ranks, 5, own)
        measures["mean_per_class"] = lambda: metrics.mean_per_class(ranks, labels, own)
        if "scores" in details:
            measures["roc_auc"] = lambda: metrics.roc_auc(details["scores"], labels == 1, own)
    return {name: measure() for name, measure in measures.items() if wanted is None or name in wanted}


def _recalls(details: Mapping[str, np.ndarray], weigh: Mapping[str, np.ndarray]) -> dict[str, float]:
    recalls = {
        f"{what}_recall@{k}": metrics.top_k(details[f"{what}_ranks"], k, weigh.get(f"{what}_ranks"))
        for what in ("image", "text")
        if f"{what}_ranks" in details
        for k in metrics.RECALLS
    }
    return {"mean_recall": float(np.mean(list(recalls.values()))), **recalls}


def _mean(measure: Callable[..., float], scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> float:
    truth = labels.astype(bool)
    return float(np.mean([measure(scores[:, one], truth[:, one], weights) for one in range(labels.shape[1])]))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
