"""The metrics, worked out by hand, and against scikit-learn."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays

from dcclip_cli.eval.metrics import (
    average_precision,
    average_precision_11,
    best_ranks,
    mean_per_class,
    per_class,
    ranks,
    roc_auc,
    top_k,
)

SCORES = np.asarray([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.4, 0.6, 0.5], [0.7, 0.8, 0.9]])
LABELS = np.asarray([0, 0, 0, 2])


def test_a_rank_counts_the_classes_that_score_higher_and_top_k_the_ranks_below_k() -> None:
    found = ranks(SCORES, LABELS)
    assert found.tolist() == [0, 1, 2, 0]
    assert [top_k(found, k) for k in (1, 2, 3, 5)] == [0.5, 0.75, 1.0, 1.0]


def test_mean_per_class_weighs_classes_not_images() -> None:
    # Class 0: one of three right; class 2: one of one; class 1 does not occur.
    assert mean_per_class(ranks(SCORES, LABELS), LABELS) == pytest.approx((1 / 3 + 1) / 2)
    shares = per_class(ranks(SCORES, LABELS), LABELS, 3)
    assert shares[0] == pytest.approx(1 / 3) and np.isnan(shares[1]) and shares[2] == 1


def test_weights_count_rows_as_often_as_they_say() -> None:
    found = ranks(SCORES, LABELS)
    weights = np.asarray([0, 2, 1, 1])
    rows = np.repeat(np.arange(4), weights)
    assert top_k(found, 1, weights) == 1 / 4 == top_k(found[rows], 1)
    assert mean_per_class(found, LABELS, weights) == mean_per_class(found[rows], LABELS[rows]) == 0.5


def test_auc_counts_pairs_in_the_right_order_and_equal_ones_half() -> None:
    # True: 3, 2; false: 2, 1. Pairs: 3>2, 3>1, 2=2, 2>1 -> 3.5 of 4.
    assert roc_auc(np.asarray([3, 2, 2, 1]), np.asarray([True, True, False, False])) == 3.5 / 4


def test_the_eleven_points_of_a_ranking_by_hand() -> None:
    # Hits at places 1, 3, 6 of three: precision 1 at recall 1/3, 2/3 at 2/3, 1/2 at 1.
    truth = np.asarray([True, False, True, False, False, True])
    scores = np.asarray([6.0, 5, 4, 3, 2, 1])
    # Recalls 0 to 0.3: 1 (four points); 0.4 to 0.6: 2/3 (three); 0.7 to 1: 1/2 (four).
    assert average_precision_11(scores, truth) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 / 2) / 11)
    assert average_precision(scores, truth) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)


def test_a_recall_of_three_tenths_reaches_the_point_at_three_tenths() -> None:
    truth = np.ones(10, bool)
    truth[3:] = False
    scores = -np.arange(10.0)
    # Three hits first: precision 1 up to recall 1.
    assert average_precision_11(scores, truth) == 1.0
    # Ten true, found at places 1 to 3 and then after ten false ones: 1 up to 0.3, then rising to 10/20.
    truth = np.asarray([True] * 3 + [False] * 10 + [True] * 7)
    assert average_precision_11(-np.arange(20.0), truth) == pytest.approx((4 * 1 + 7 * 10 / 20) / 11)


def test_scikit_learn_says_the_same() -> None:
    from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

    random = np.random.default_rng(0)
    scores, truth = random.integers(0, 40, 200) / 40, random.random(200) < 0.3
    weights = random.integers(0, 4, 200).astype(float)
    assert roc_auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert roc_auc(scores, truth, weights) == pytest.approx(roc_auc_score(truth, scores, sample_weight=weights))
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    logits, labels = random.random((200, 7)), random.integers(0, 7, 200)
    balanced = balanced_accuracy_score(labels, logits.argmax(1))
    assert mean_per_class(ranks(logits, labels), labels) == pytest.approx(balanced)


def test_a_search_is_as_good_as_its_best_hit() -> None:
    items = np.eye(4, dtype=np.float32)
    queries = np.asarray([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]], np.float32)
    # First: item 2 stands third, item 3 fourth. Second: item 3 is first. Third: all equal, item 1 comes after item 0.
    assert best_ranks(queries, items, [(2, 3), (0, 3), (3, 1)]).tolist() == [2, 0, 1]


TIED = some.integers(0, 3).map(float)  # few values, so many are equal
TRUTH = np.asarray([True, False, True, False, False])
MEASURES: dict[str, Callable[[np.ndarray], object]] = {  # of scores (5, 3)
    "ranks": lambda scores: ranks(scores, np.arange(5) % 3),
    "roc_auc": lambda scores: roc_auc(scores[:, 0], TRUTH),
    "average_precision": lambda scores: average_precision(scores[:, 0], TRUTH),
    "average_precision_11": lambda scores: average_precision_11(scores[:, 0], TRUTH),
    "best_ranks of queries": lambda scores: best_ranks(scores, np.ones((2, 3)), [(0,)] * 5),
    "best_ranks of items": lambda scores: best_ranks(np.ones((2, 3)), scores, [(0, 1), (4,)]),
}


@pytest.mark.parametrize("measure", MEASURES)
@given(arrays(float, (5, 3), elements=TIED), some.integers(0, 4), some.sampled_from([np.nan, np.inf, -np.inf]))
@settings(max_examples=50)
def test_a_score_that_is_not_finite_is_refused_and_ties_are_not(
    measure: str, scores: np.ndarray, row: int, bad: float
) -> None:
    MEASURES[measure](scores)
    scores[row, 0] = bad
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="not finite"):
        MEASURES[measure](scores)


@given(arrays(float, (5, 3), elements=TIED))
@settings(max_examples=50)
def test_a_rank_is_the_place_in_a_stable_sort(scores: np.ndarray) -> None:
    labels = np.asarray([0, 1, 2, 0, 1])
    order = np.argsort(-scores, axis=1, kind="stable")
    places = (order == labels[:, None]).argmax(axis=1).tolist()
    assert ranks(scores, labels).tolist() == places
    assert best_ranks(scores, np.eye(3), [(label,) for label in labels]).tolist() == places
