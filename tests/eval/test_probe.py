"""Linear probes: the images they are trained on, and their metrics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import metrics
from dcclip_cli.eval.metrics import probe, sample, summary
from tests.eval import layouts
from tests.eval.conftest import clear
from tests.eval.test_evaluate import Oracle, run

pytestmark = pytest.mark.usefixtures("small")

__all__ = ["run"]  # a fixture


def test_a_sample_has_the_given_number_of_each_class_or_all_it_has() -> None:
    labels = np.asarray([0] * 30 + [1] * 3 + [2] * 10)
    rows = sample(labels, 5, 0)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 5]
    assert sample(labels, 5, 0).tolist() == rows.tolist() != sample(labels, 5, 1).tolist()
    assert sample(labels, None, 0).tolist() == list(range(43))


def test_a_sample_of_several_classes_an_image_has_enough_of_each() -> None:
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
    found = probe(train, train_labels, test, test_labels, "top1", 0)
    best = max(
        LogisticRegression(C=strength, max_iter=1000).fit(train, train_labels).score(test, test_labels)
        for strength in (0.1, 1, 10, 100)
    )
    assert found.metrics["top1"] == pytest.approx(best, abs=0.02) and best > 0.9
    shuffled = np.random.default_rng(0).permutation(train_labels)
    assert probe(train, shuffled, test, test_labels, "top1", 0).metrics["top1"] < 0.6


def test_a_probe_for_several_classes_per_image_and_for_two_classes() -> None:
    train, labels = _blobs(0, 90)
    test, test_labels = _blobs(1, 90)
    several = probe(train, np.eye(3, dtype=bool)[labels], test, np.eye(3, dtype=bool)[test_labels], "map11", 0)
    assert several.metrics["map11"] > 0.9
    lacking = labels != 1  # no training image of class 1, so it is never predicted
    assert probe(train[lacking], labels[lacking], test, test_labels, "top1", 0).metrics["top1"] <= 2 / 3
    two = probe(train, labels.clip(max=1), test, test_labels.clip(max=1), "roc_auc", 0)
    assert two.metrics["roc_auc"] > 0.95


def test_seeds_are_averaged_and_their_spread_reported() -> None:
    train, labels = _blobs(0, 60)
    test, test_labels = _blobs(1, 90)
    scores = [probe(train[rows], labels[rows], test, test_labels, "top1", seed)
              for seed in range(3) for rows in [sample(labels, 2, seed)]]  # fmt: skip
    values = [score.metrics["top1"] for score in scores]
    found = summary(scores)
    assert found["top1"] == pytest.approx(np.mean(values)) and found["top1_std"] == pytest.approx(
        np.std(values, ddof=1)
    )


def test_a_metric_that_the_held_out_images_leave_undefined_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    strengths = []

    def fit(train: np.ndarray, labels: np.ndarray, test: np.ndarray, strength: float, classes: int) -> np.ndarray:
        strengths.append(strength)
        return np.stack([-test[:, 0], test[:, 0]], axis=1)

    monkeypatch.setattr(metrics, "_fit", fit)
    rows = np.arange(12.0)[:, None] / 1000
    labels = np.asarray([0] * 11 + [1])  # the one image of class 1 is trained on: no AUC without it
    assert probe(rows, labels, rows, labels, "roc_auc", 0).metrics["roc_auc"] == 1.0
    assert strengths[-1] == 1.0


def test_probes_train_on_the_training_split_with_cached_embeddings(tmp_path: Path, run: Any) -> None:
    names = [f"alpha_{number}" for number in range(10)]
    layouts.class_folders(tmp_path / "mnist/test", names)
    with pytest.raises(DcclipError, match="mnist has no"):
        run(Oracle(), ["mnist"], tmp_path, task="probe")
    for number, name in enumerate(names):
        for copy in range(3):
            layouts.write(tmp_path / f"mnist/train/{name}/{copy}.png", layouts.image(number))
    clear()
    model = Oracle()
    results = run(model, ["mnist"], tmp_path, task="probe", shots=(2, 0))
    assert [result.task for result in results] == ["linear probe, 2 shots", "linear probe"]
    assert all(result.value == 1.0 and result.n == 10 for result in results)
    assert results[0].metrics["top1_std"] == 0.0 and "top1_std" not in results[1].metrics
    assert sum(model.seen) == 10 + 30 and model.texts == []
