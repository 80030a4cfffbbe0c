"""Classification and retrieval metrics (NumPy), all in 0..1, and linear probes.

Every metric takes `weights` (N,): how often each row counts, which is all that a bootstrap sample
needs. Functions of scores raise ValueError for NaN or infinity: NaN cannot be ranked, and would
come first. Metrics of classes are the mean over all orders of those with the same score; other
ties are decided without chance, as each function says. A metric that the labels leave undefined is
NaN.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dcclip_cli.core.errors import DcclipError
from dcclip_cli.eval.registry import Metric
from dcclip_cli.inference.zero_shot import softmax_of

RECALLS = (1, 5, 10)
TWIN_TOPS = (1, 5, 10)  # first images that are compared between languages
_BLOCK = 1024  # queries compared with all items at once
# 1 - cosine of the same embedding; the starter's names that are 1e-8 apart in fp32 are so far in
# int8
TIED = 1e-5
_SCALE = 100.0  # ELEVATER's logit scale before the softmax over classes, for mAP and AUC


def tied_groups(vectors: np.ndarray) -> list[list[int]]:
    """Groups of classes with the same embedding (C, D): 1 - cosine under TIED, or connected so by
    other classes.
    """
    first = np.arange(len(vectors))  # of the classes with the same embedding
    while True:
        blocks = (
            vectors[start : start + _BLOCK] @ vectors.T for start in range(0, len(vectors), _BLOCK)
        )
        lowest = np.concatenate(
            [np.where(block > 1 - TIED, first, len(first)).min(axis=1) for block in blocks]
        )
        if (lowest == first).all():
            break
        first = lowest
    classes, sizes = np.unique(first, return_counts=True)
    return [np.flatnonzero(first == lowest_class).tolist() for lowest_class in classes[sizes > 1]]


def level(scores: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Scores (N, C) in which the classes of each group have their mean score, which is exactly the
    same for all.
    """
    for group in groups:
        scores[:, group] = scores[:, group].mean(axis=1, keepdims=True)
    return scores


def ranks(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the number of scores (N, C) over that of each row's label, and (N,) of those that equal
    it, with its own.
    """
    _check(scores)
    label_scores = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
    return (scores > label_scores).sum(axis=1), (scores == label_scores).sum(axis=1)


def tied_answers(scores: np.ndarray) -> float:
    """The fraction of rows (N, C) whose highest score several classes have."""
    return float(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).mean())


def among_first(ranks: np.ndarray, ties: np.ndarray | None, k: int) -> np.ndarray:
    """(N,) the share of the orders of a label and the classes that tie with it that have it among
    the first k.
    """
    return ranks < k if ties is None else np.clip((k - ranks.astype(float)) / ties, 0, 1)


def top_k(
    ranks: np.ndarray, k: int, weights: np.ndarray | None = None, ties: np.ndarray | None = None
) -> float:
    """The fraction of rows whose label has one of the k highest scores."""
    return float(np.average(among_first(ranks, ties, k), weights=weights))


def per_class(
    right: np.ndarray, labels: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """(C,) the mean of each class's rows of `right` (N,), such as `among_first`; NaN for a class
    without rows.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    total = np.bincount(labels, weights, classes)
    correct = np.bincount(labels, weights * right, classes)
    return np.divide(correct, total, out=np.full(classes, np.nan), where=total > 0)


def roc_auc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The probability that a true row (N,) scores over a false one; equal scores count half. NaN
    without both.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    _check(scores)
    values, at = np.unique(scores, return_inverse=True)
    true = np.bincount(at, weights * truth, len(values))
    false = np.bincount(at, weights * ~truth, len(values))
    below = np.cumsum(false) - false
    pairs = true.sum() * false.sum()
    return float((true * (below + false / 2)).sum() / pairs) if pairs else float("nan")


def average_precision(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The area under a class's precision-recall curve in steps, one for equal scores (N,). NaN
    without true rows.
    """
    precision, recall = _curve(scores, truth, weights)
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def average_precision_11(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """ELEVATER's: the mean of the highest precision at recalls of at least 0, 0.1, ..., 1. NaN
    without true rows.

    Its library vision-evaluation counts the last point of sklearn's curve, a precision of 1 at
    recall 0, so that the first of the eleven is 1. Pascal VOC 2007's metric is lower by (1 -
    highest precision) / 11.
    """
    precision, recall = _curve(scores, truth, weights)
    if np.isnan(recall).any():
        return float("nan")
    best = np.maximum.accumulate(precision[::-1])[::-1]
    # Rounded: a recall of 3/10 must not be below 0.3 by the last bit.
    first = np.searchsorted(np.round(recall, 12), np.round(np.arange(1, 11) / 10, 12))
    return float((1 + np.append(best, 0.0)[first].sum()) / 11)


def _curve(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at each score as the threshold, the highest first; recall is NaN
    without true rows.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    _check(scores)
    values, at = np.unique(-scores, return_inverse=True)
    true = np.cumsum(np.bincount(at, weights * truth, len(values)))
    counted = np.cumsum(np.bincount(at, weights, len(values)))
    # Above the first row that counts there is no precision: 0, which is never the highest.
    precision = np.divide(true, counted, out=np.zeros(len(values)), where=counted > 0)
    return precision, np.divide(
        true, true[-1], out=np.full(len(values), np.nan), where=true[-1] > 0
    )


def best_ranks(
    queries: np.ndarray, items: np.ndarray, targets_by_query: Sequence[Sequence[int]]
) -> np.ndarray:
    """(Q,) the rank, from 0, of the first of each query's targets among items (I, D); ties go to
    the lower item.
    """
    ranks_of_best = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _BLOCK):
        scores = queries[start : start + _BLOCK] @ items.T
        _check(scores)
        for row, line in enumerate(scores):
            targets = np.asarray(targets_by_query[start + row])
            best = targets[np.lexsort((targets, -line[targets]))[0]]
            ranks_of_best[start + row] = (line > line[best]).sum() + (
                line[:best] == line[best]
            ).sum()
    return ranks_of_best


def _check(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("scores that are not finite cannot be ranked")


@dataclass(frozen=True)
class Score:
    """All metrics of one data set, and the predictions and ranks of each image or text that they
    are computed from.
    """

    metrics: dict[str, float]
    details: dict[str, np.ndarray]


def score_classes(scores: np.ndarray, labels: np.ndarray, metric: Metric) -> Score:
    """The metrics of scores (N, C), cosines or a probe's logits, for labels (N,) or truth values
    (N, C).
    """
    if labels.ndim == 2:
        details = {"labels": labels, "scores": softmax_of(_SCALE * scores), "cosines": scores}
    else:
        higher, ties = ranks(scores, labels)
        details = {"labels": labels, "ranks": higher, "predictions": scores.argmax(axis=1)}
        if ties.max() > 1:
            details["ties"] = ties
        if metric == "roc_auc":
            details["scores"] = softmax_of(_SCALE * scores)[:, 1]
    return Score(
        metrics_of(details), {name: array for name, array in details.items() if name != "cosines"}
    )


def score_retrieval(
    images: np.ndarray,
    texts: np.ndarray,
    targets_by_text: Sequence[Sequence[int]],
    both_ways: bool = True,
) -> Score:
    """Recall at 1, 5, 10 of images (N, D) by texts (M, D), and the reverse; text j describes
    `targets_by_text[j]`.

    A query counts if any of its targets is among the first k. `mean_recall` is the mean of all
    recalls.
    """
    details = {"image_ranks": best_ranks(texts, images, targets_by_text)}
    if both_ways:
        texts_of: list[list[int]] = [[] for _ in range(len(images))]
        for number, described in enumerate(targets_by_text):
            for image in described:
                texts_of[image].append(number)
        queries = [number for number, described in enumerate(texts_of) if described]
        details["text_ranks"] = best_ranks(
            images[queries], texts, [texts_of[number] for number in queries]
        )
    return Score(metrics_of(details), details)


def metrics_of(
    details: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """The metrics of a score's details, or those in `names`, with `weights` of the rows of labels,
    ranks or margins.
    """
    weigh = weights or {}
    if "margin" in details:  # of queries in two languages; NaN where one does not count
        values = {
            name: np.ma.masked_invalid(details[name])
            for name in details
            if name not in ("margin", "nearest")
        }
        means = {
            name: np.ma.average(value, weights=weigh.get("margin"))
            for name, value in values.items()
        }
        return {name: float(mean) for name, mean in means.items() if mean is not np.ma.masked}
    if "labels" not in details:
        recalls = {
            f"{target}_recall@{k}": top_k(
                details[f"{target}_ranks"], k, weigh.get(f"{target}_ranks")
            )
            for target in ("image", "text")
            if f"{target}_ranks" in details
            for k in RECALLS
        }
        return {"mean_recall": float(np.mean(list(recalls.values()))), **recalls}
    labels = details["labels"]
    label_weights = weigh.get("labels")
    compute: dict[str, Callable[[], float]] = {}
    if labels.ndim == 2:
        compute["map11"] = lambda: _class_mean(
            average_precision_11, details["scores"], labels, label_weights
        )
        if "cosines" in details:  # CLIP_benchmark's: no softmax before it
            compute["map"] = lambda: _class_mean(
                average_precision, details["cosines"], labels, label_weights
            )
    else:
        ranks = details["ranks"]
        ties = details.get("ties")
        compute["top1"] = lambda: top_k(ranks, 1, label_weights, ties)
        compute["top5"] = lambda: top_k(ranks, 5, label_weights, ties)
        compute["mean_per_class"] = lambda: float(
            np.nanmean(
                per_class(among_first(ranks, ties, 1), labels, int(labels.max()) + 1, label_weights)
            )
        )
        if "scores" in details:
            compute["roc_auc"] = lambda: roc_auc(details["scores"], labels == 1, label_weights)
    return {name: metric() for name, metric in compute.items() if names is None or name in names}


def _class_mean(
    metric: Callable[..., float], scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
) -> float:
    """The mean over the classes that occur."""
    truth = labels.astype(bool)
    values = np.asarray(
        [metric(scores[:, number], truth[:, number], weights) for number in range(labels.shape[1])]
    )
    is_defined = ~np.isnan(values)
    return float(values[is_defined].mean()) if is_defined.any() else float("nan")


# ---- linear probes: logistic regression on frozen image embeddings, with a few labelled images
# per class or all. ELEVATER's protocol (arXiv 2204.08790, section 4): the same images for every
# model and seed, the regularisation chosen on a held-out fifth of the training images, then a fit
# on all of them. Logistic regression instead of SGD, as in CLIP.

SHOTS = (5, 20, 50)  # ELEVATER's
SEEDS = (0, 1, 2)
_STRENGTHS = tuple(
    10.0**power for power in (-3, -1, 1, 3, 5)
)  # 1 / regularisation, for embeddings of length 1
_FINER = tuple(10.0**power for power in (-1.0, -0.5, 0.0, 0.5, 1.0))  # around the best of them
_MAX_STEPS = 1000
_HELD_OUT = 0.2


def sample(labels: np.ndarray, shots: int | None, seed: int) -> np.ndarray:
    """The rows to train on: `shots` of each class, or as many as it has; all for None. `labels` as
    in Loaded.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    if shots is None:
        return np.sort(order)
    chosen = {
        int(order[row])
        for column in _one_hot(labels[order]).T
        for row in np.flatnonzero(column)[:shots]
    }
    return np.asarray(sorted(chosen))


def probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    metric: Metric,
    seed: int,
) -> Score:
    """The metrics on the test images of a layer fitted to the training images; embeddings (N, D)
    and (M, D).
    """
    held = np.zeros(len(train_labels), bool)
    columns = _one_hot(train_labels)
    random = np.random.default_rng(seed)
    for (
        column
    ) in columns.T:  # a fifth of each class's rows is held out, at least one, where it has two
        rows = random.permutation(np.flatnonzero(column))
        if len(rows) > 1:
            held[rows[: max(1, int(len(rows) * _HELD_OUT))]] = True
    if train_labels.ndim == 2:  # every class keeps a row to train on
        for column in columns.T:
            if column.any() and not (column & ~held).any():
                held[np.flatnonzero(column)[0]] = False
    classes = max(_one_hot(labels).shape[1] for labels in (train_labels, test_labels))

    def on_held_out(strength: float) -> float:
        scores = _fit(train[~held], train_labels[~held], train[held], strength, classes)
        return score_classes(scores, train_labels[held], metric).metrics[metric]

    strength = 1.0
    # Nothing to choose by: one image per class, or held-out images on which the metric is not
    # defined.
    measured = {value: on_held_out(value) for value in _STRENGTHS} if held.any() else {}
    if measured and not np.isnan([*measured.values()]).any():
        coarse = max(measured, key=measured.__getitem__)
        measured |= {
            coarse * factor: on_held_out(coarse * factor) for factor in _FINER if factor != 1.0
        }
        strength = max(measured, key=measured.__getitem__)
    return score_classes(_fit(train, train_labels, test, strength, classes), test_labels, metric)


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of every metric over the seeds, and the standard deviation where there are several."""
    names = scores[0].metrics
    averages = {name: float(np.mean([score.metrics[name] for score in scores])) for name in names}
    if len(scores) > 1:
        averages |= {
            f"{name}_std": float(np.std([score.metrics[name] for score in scores], ddof=1))
            for name in names
        }
    return averages


def _one_hot(labels: np.ndarray) -> np.ndarray:
    """(N, C) truth values of labels (N,); truth values are returned as they are."""
    return labels if labels.ndim == 2 else np.eye(int(labels.max()) + 1, dtype=bool)[labels]


def _fit(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, strength: float, classes: int
) -> np.ndarray:
    """(M, C) scores of the test rows; a class without training rows is never predicted."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fitted(truth: np.ndarray) -> LogisticRegression:
        if len(np.unique(truth)) < 2:
            raise DcclipError(
                "all training images belong to one class",
                "use a data set with at least two classes",
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # expected for weak regularisation
            return LogisticRegression(C=strength, max_iter=_MAX_STEPS).fit(train, truth)

    if labels.ndim == 2:
        return (
            np.stack([fitted(column).decision_function(test) for column in labels.T], axis=1) / 100
        )
    classifier = fitted(labels)
    scores = classifier.decision_function(test)
    if scores.ndim == 1:  # two classes: one column, the score of the second
        scores = np.stack([-scores, scores], axis=1)
    class_scores = np.full((len(test), classes), scores.min() - 1)
    class_scores[:, classifier.classes_] = scores
    return class_scores
