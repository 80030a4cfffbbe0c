"""The metrics, worked out by hand, and against scikit-learn."""

import numpy as np
import pytest

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


def test_a_search_is_as_good_as_its_best_hit() -> None:
    items = np.eye(4, dtype=np.float32)
    queries = np.asarray([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]], np.float32)
    # First: item 2 stands third, item 3 fourth. Second: item 3 is first. Third: all equal, item 1 comes after item 0.
    assert best_ranks(queries, items, [(2, 3), (0, 3), (3, 1)]).tolist() == [2, 0, 1]
