"""The metrics, worked out by hand."""

import numpy as np
import pytest

from dcclip_cli.eval.metrics import mean_per_class, ranks, top_k

SCORES = np.asarray([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.4, 0.6, 0.5], [0.7, 0.8, 0.9]])
LABELS = np.asarray([0, 0, 0, 2])


def test_a_rank_counts_the_classes_that_score_higher() -> None:
    assert ranks(SCORES, LABELS).tolist() == [0, 1, 2, 0]


def test_equal_scores_go_to_the_lower_class_as_argmax_has_it() -> None:
    scores = np.asarray([[0.5, 0.5, 0.5]] * 3)
    assert ranks(scores, np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("k", "share"), [(1, 0.5), (2, 0.75), (3, 1.0), (5, 1.0)])
def test_top_k_is_the_share_of_ranks_below_k(k: int, share: float) -> None:
    assert top_k(ranks(SCORES, LABELS), k) == share


def test_mean_per_class_weighs_classes_not_images() -> None:
    # Class 0: one of three right; class 2: one of one; class 1 does not occur.
    assert mean_per_class(ranks(SCORES, LABELS), LABELS) == pytest.approx((1 / 3 + 1) / 2)
