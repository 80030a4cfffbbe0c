"""Every metric against its definition in plain Python, with ties, NaN, infinity, weights as repeats; linear probes."""

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

from dcclip_cli.eval import metrics
from dcclip_cli.eval.metrics import metrics_of, probe, sample, score_classes, score_retrieval, summary

ROWS = 6
CLASSES = 3
BAD = [math.nan, math.inf, -math.inf]
# Few values, so that many are equal; far apart, so that a softmax keeps those of other rows apart.
TIED = some.sampled_from([-0.5, 0.0, 0.25, 0.5])
SCORES = arrays(np.float32, (ROWS, CLASSES), elements=TIED)
LABELS = arrays(np.int64, ROWS, elements=some.integers(0, CLASSES - 1))
TRUTH = arrays(bool, (ROWS, CLASSES))
WEIGHTS = arrays(np.float64, ROWS, elements=some.integers(0, 3).map(float)).filter(lambda weights: weights.any())


def rank(line: Sequence[float], wanted: Sequence[int]) -> int:
    """How many entries come before the first wanted one: the higher first, of equal ones the lower number."""
    order = sorted(range(len(line)), key=lambda number: (-line[number], number))
    return min(order.index(number) for number in wanted)


def chance(line: Sequence[float], label: int, k: int) -> float:
    """In how many of all orders of the classes the label is among the first k by score, as a fraction."""
    orders = permutations(range(len(line)))
    return mean([sorted(order, key=lambda number: -line[number]).index(label) < k for order in orders])


def repeated(weights: np.ndarray) -> list[int]:
    return [row for row, weight in enumerate(weights) for _ in range(int(weight))]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def auc(scores: Sequence[float], truth: Sequence[bool]) -> float:
    true, false = (
        [cell for cell, is_true in zip(scores, truth, strict=True) if is_true == kind] for kind in (True, False)
    )
    return mean([(cell > low) + (cell == low) / 2 for cell in true for low in false])


def steps(scores: Sequence[float], truth: Sequence[bool]) -> list[tuple[float, float]]:
    """(precision, recall) of taking all rows from a score on, for each score that occurs, the highest first."""
    points = []
    for least in sorted(set(scores), reverse=True):
        above = [is_true for cell, is_true in zip(scores, truth, strict=True) if cell >= least]
        points.append((sum(above) / len(above), sum(above) / sum(truth)))
    return points


def precision_by_steps(scores: Sequence[float], truth: Sequence[bool]) -> float:
    if not any(truth):
        return math.nan
    total = 0.0
    before = 0.0
    for precision, recall in steps(scores, truth):
        total = total + precision * (recall - before)
        before = recall
    return total


def precision_at_eleven(scores: Sequence[float], truth: Sequence[bool]) -> float:
    if not any(truth):
        return math.nan
    curve = [(1.0, 0.0), *steps(scores, truth)]  # sklearn's last point
    return mean([max(precision for precision, recall in curve if recall >= least / 10 - 1e-9) for least in range(11)])


def over_classes(values: Sequence[float]) -> float:
    return mean([value for value in values if not math.isnan(value)])


@given(SCORES, LABELS, WEIGHTS)
@settings(max_examples=60)
def test_top_k_and_mean_per_class_are_as_defined(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
    result = score_classes(scores, labels, "top1")
    lines = scores.tolist()
    chances = {k: [chance(line, label, k) for line, label in zip(lines, labels.tolist(), strict=True)] for k in (1, 5)}
    assert result.details["predictions"].tolist() == [line.index(max(line)) for line in lines]
    for given_weights, rows in ((None, [*range(ROWS)]), ({"labels": weights}, repeated(weights))):
        expected = {f"top{k}": mean([chances[k][row] for row in rows]) for k in (1, 5)}
        by_class = [[chances[1][row] for row in rows if labels[row] == label] for label in range(CLASSES)]
        expected["mean_per_class"] = mean([mean(chances_of) for chances_of in by_class if chances_of])
        assert metrics_of(result.details, given_weights) == pytest.approx(expected)
    assert metrics.tied_answers(scores) == mean([line.count(max(line)) > 1 for line in lines])


@given(SCORES, TRUTH, WEIGHTS)
@settings(max_examples=60)
def test_mean_precisions_are_over_classes_that_occur(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray
) -> None:
    result = score_classes(scores, truth, "map11")
    cosines = scores.T.tolist()
    probabilities = result.details["scores"].T.tolist()
    logits = [[100 * cell for cell in line] for line in scores.tolist()]
    for row, line in enumerate(logits):
        sums = sum(math.exp(cell - max(line)) for cell in line)
        assert [math.exp(cell - max(line)) / sums for cell in line] == pytest.approx(
            [cell[row] for cell in probabilities]
        )
    labels = truth.T.tolist()
    plain = {
        "map": over_classes([precision_by_steps(*parsed) for parsed in zip(cosines, labels, strict=True)]),
        "map11": over_classes([precision_at_eleven(*parsed) for parsed in zip(probabilities, labels, strict=True)]),
    }
    assert result.metrics == pytest.approx(plain, nan_ok=True)
    rows = repeated(weights)
    sampled = [
        ([precision[row] for row in rows], [is_true[row] for row in rows])
        for precision, is_true in zip(probabilities, labels, strict=True)
    ]
    resampled = metrics_of(result.details, {"labels": weights})
    assert resampled == pytest.approx(
        {"map11": over_classes([precision_at_eleven(*parsed) for parsed in sampled])}, nan_ok=True
    )


@given(some.data())
@settings(max_examples=60)
def test_the_auc_of_two_classes_is_that_of_the_second_ones_probability(data: some.DataObject) -> None:
    # A gap of 0.4 or more is a probability of 1 in double precision.
    scores = data.draw(arrays(np.float32, (ROWS, 2), elements=TIED)) / 4
    labels = data.draw(arrays(np.int64, ROWS, elements=some.integers(0, 1)))
    result = score_classes(scores, labels, "roc_auc")
    gaps = [100 * (second - first) for first, second in scores.tolist()]  # the probability grows with the gap
    assert result.metrics["roc_auc"] == pytest.approx(auc(gaps, [label == 1 for label in labels]), nan_ok=True)
    weights = data.draw(WEIGHTS)
    expected = auc(*zip(*((gaps[row], labels[row] == 1) for row in repeated(weights)), strict=True))
    assert metrics_of(result.details, {"labels": weights})["roc_auc"] == pytest.approx(expected, nan_ok=True)


ABOUT = some.lists(
    some.lists(some.integers(0, 3), min_size=1, max_size=3, unique=True).map(tuple), min_size=5, max_size=5
)


@given(
    arrays(np.float32, (4, 2), elements=TIED),
    arrays(np.float32, (5, 2), elements=TIED),
    ABOUT,
    some.booleans(),
    some.data(),
)
@settings(max_examples=60)
def test_recalls_count_queries_one_of_whose_targets_is_among_the_first_k(
    images: np.ndarray, texts: np.ndarray, about: list[tuple[int, ...]], both_ways: bool, data: some.DataObject
) -> None:
    result = score_retrieval(images, texts, about, both_ways)
    cosines = [
        [sum(a * b for a, b in zip(text, image, strict=True)) for image in images.tolist()] for text in texts.tolist()
    ]
    places = {"image": [rank(line, targets) for line, targets in zip(cosines, about, strict=True)]}
    if both_ways:
        of_image = [[number for number, listed in enumerate(about) if image in listed] for image in range(4)]
        columns = list(zip(*cosines, strict=True))
        places["text"] = [rank(columns[image], targets) for image, targets in enumerate(of_image) if targets]
    weights = {
        f"{target}_ranks": np.asarray(
            data.draw(some.lists(some.integers(1, 3), min_size=len(ranks), max_size=len(ranks))), float
        )
        for target, ranks in places.items()
    }
    for weighting in ({}, weights):
        recalls: dict[str, float] = {}
        for target, ranks in places.items():
            assert result.details[f"{target}_ranks"].tolist() == ranks
            drawn = [ranks[row] for row in (repeated(weighting[f"{target}_ranks"]) if weighting else range(len(ranks)))]
            recalls |= {f"{target}_recall@{k}": mean([place < k for place in drawn]) for k in (1, 5, 10)}
        expected = {**recalls, "mean_recall": mean(list(recalls.values()))}
        assert metrics_of(result.details, weighting) == pytest.approx(expected)


@given(SCORES, LABELS, TRUTH, some.integers(0, ROWS - 1), some.integers(0, CLASSES - 1), some.sampled_from(BAD))
@settings(max_examples=60)
def test_one_number_that_is_not_finite_anywhere_leaves_no_metric(
    scores: np.ndarray, labels: np.ndarray, truth: np.ndarray, row: int, column: int, bad: float
) -> None:
    scores[row, column] = bad
    images = scores
    texts = np.eye(CLASSES, dtype=np.float32)
    with np.errstate(all="ignore"):
        for compute in (
            lambda: score_classes(scores, labels, "top1"),
            lambda: score_classes(scores, truth, "map11"),
            lambda: score_classes(scores[:, :2] if column < 2 else scores[:, 1:], labels % 2, "roc_auc"),
            lambda: score_retrieval(images, texts, [(row,), (0,), (ROWS - 1,)]),
            lambda: score_retrieval(texts, images, [(0,)] * ROWS, both_ways=False),
        ):
            with pytest.raises(ValueError, match="not finite"):
                compute()


def test_a_sample_has_enough_of_each_class_or_all_it_has() -> None:
    labels = np.asarray([0] * 30 + [1] * 3 + [2] * 10)
    rows = sample(labels, 5, 0)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 5]
    assert sample(labels, 5, 0).tolist() == rows.tolist() != sample(labels, 5, 1).tolist()
    assert sample(labels, None, 0).tolist() == list(range(43))
    labels = np.random.default_rng(0).random((200, 4)) < 0.3
    rows = sample(labels, 5, 0)
    assert (labels[rows].sum(axis=0) >= 5).all() and len(rows) <= 20


def _blobs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    vectors = np.eye(8)[labels] + random.normal(scale=0.25, size=(count, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def test_a_probe_learns_separable_classes_and_equals_scikit_learns_own_search() -> None:
    from sklearn.linear_model import LogisticRegression

    train, train_labels = _blobs(0, 90)
    test, test_labels = _blobs(1, 300)
    result = probe(train, train_labels, test, test_labels, "top1", 0)
    best = max(
        LogisticRegression(C=strength, max_iter=1000).fit(train, train_labels).score(test, test_labels)
        for strength in (0.1, 1, 10, 100)
    )
    assert result.metrics["top1"] == pytest.approx(best, abs=0.02) and best > 0.9
    shuffled = np.random.default_rng(0).permutation(train_labels)
    assert probe(train, shuffled, test, test_labels, "top1", 0).metrics["top1"] < 0.6


def test_a_probe_for_several_classes_per_image_and_for_two_classes() -> None:
    train, labels = _blobs(0, 90)
    test, test_labels = _blobs(1, 90)
    listed = probe(train, np.eye(3, dtype=bool)[labels], test, np.eye(3, dtype=bool)[test_labels], "map11", 0)
    assert listed.metrics["map11"] > 0.9
    lacking = labels != 1  # no training image of class 1, so it is never predicted
    assert probe(train[lacking], labels[lacking], test, test_labels, "top1", 0).metrics["top1"] <= 2 / 3
    two = probe(train, labels.clip(max=1), test, test_labels.clip(max=1), "roc_auc", 0)
    assert two.metrics["roc_auc"] > 0.95


def test_seeds_are_averaged_and_their_spread_reported() -> None:
    scores = [metrics.Score({"top1": value}, {}) for value in (0.5, 0.6, 0.7)]
    assert summary(scores) == pytest.approx({"top1": 0.6, "top1_std": 0.1})
