"""The loss on labels, against its formula in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dcclip_cli.data.batch import IMAGES
from dcclip_cli.train.losses.base import ClassOutputs, Outputs
from dcclip_cli.train.losses.labels import LabelsLoss
from tests.train.losses.outputs import NONE, outputs, softmax, unit

pytestmark = pytest.mark.any_cpu


def labelled(labels: list[int], counts: list[int], languages: tuple[str, ...] = ("zh", "en")) -> Outputs:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(len(labels), 5, generator=random)
    names = {language: torch.randn(len(counts), 5, generator=random) for language in languages}
    classes = ClassOutputs(names, torch.tensor(labels, dtype=torch.int64), torch.tensor(counts))  # type: ignore[arg-type]
    return replace(outputs(images), classes=classes)


def loss_of(loss: LabelsLoss, student: Outputs) -> float:
    return float(loss.terms(student, [], NONE)["labels"])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("languages", [("zh", "en"), ("en",)])
def test_labels_is_a_weighted_smoothed_cross_entropy_over_all_class_names(
    smoothing: float, balance: float, languages: tuple[str, ...]
) -> None:
    labels = [0, 2, 2, -1]
    counts = [1, 3, 9]
    student = labelled(labels, counts, languages)
    weights = np.array(counts, float) ** -balance
    weights *= sum(counts) / (weights * counts).sum()
    assert student.classes is not None
    total = 0.0
    for names in student.classes.names.values():
        probabilities = softmax(10 * unit(student.image.embedding) @ unit(names).T)
        for row, label in zip(probabilities, labels, strict=True):
            if label >= 0:
                target = (1 - smoothing) * np.eye(3)[label] + smoothing / 3
                total -= weights[label] * (target * np.log(row)).sum()
    expected = total / len(labels) / len(languages)
    loss = LabelsLoss(scale=10, smoothing=smoothing, balance=balance)
    assert loss_of(loss, student) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_images_or_labels_has_the_loss_0() -> None:
    assert loss_of(LabelsLoss(), labelled([-1, -1], [4, 4])) == 0
    assert loss_of(LabelsLoss(), labelled([], [4, 4])) == 0


def test_shorter_embeddings_have_shorter_class_names() -> None:
    student = labelled([0, 1], [2, 2]).cut(3)
    assert student.classes is not None
    assert student.embeddings[IMAGES].shape == (2, 3)
    assert {names.shape for names in student.classes.names.values()} == {(2, 3)}
    assert loss_of(LabelsLoss(), student) > 0
