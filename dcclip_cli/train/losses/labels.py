"""The loss on labels: images against the names of all classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dcclip_cli.data.batch import IMAGES
from dcclip_cli.data.labels import UNLABELLED
from dcclip_cli.train.losses.base import (
    BOTH,
    Loss,
    Needs,
    Outputs,
    Tower,
    per_process,
    take,
)
from dcclip_cli.train.losses.embeddings import Scale

if TYPE_CHECKING:
    from torch import Tensor, nn


class LabelsLoss(Loss):
    """Cross-entropy of an image over the embeddings of all class names, the mean over languages.

    It is the fine-tuning objective of FLYP (Goyal et al., arXiv 2212.00638) with the names of all
    classes in place of the captions of a batch. The names stand alone in every other step, and in
    the generic templates in turn in the steps between. The loss is summed over the images that
    have a class and divided by all images of the batch. An image of a class with n images in the
    data has a weight in proportion to n ** -`balance`, and the mean of these weights is 1.
    """

    kind: Literal["labels"] = "labels"
    scale: Scale = Field(50.0, description="1 / temperature of the class probabilities, fixed")
    smoothing: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Part of each label that is spread equally over all classes",
    )
    balance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="How much rare classes weigh: 0 counts each image equally, 1 each class",
    )
    needs: ClassVar[frozenset[Needs]] = frozenset({"pairs", "images"})
    trains: ClassVar[frozenset[Tower]] = BOTH
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    def chance(self, student: Outputs) -> dict[str, float]:
        return {self.kind: math.log(len(student.classes.counts))} if student.classes else {}

    def terms(
        self, student: Outputs, teachers: Sequence[Outputs], adapters: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        from torch.nn import functional as F

        classes = student.classes
        assert classes is not None
        local = student.local_rows(IMAGES, "texts")
        images = F.normalize(take(student.image.embedding, local), dim=-1)
        labels = take(classes.labels, local)
        labelled = labels != UNLABELLED
        labels = labels.clamp(min=0)
        weights = self._class_weights(classes.counts)[labels] * labelled
        total = images.new_zeros(())
        for names in classes.names.values():
            logits = self.scale * images @ F.normalize(names, dim=-1).T
            log_probabilities = logits.log_softmax(-1)
            of_label = log_probabilities.gather(1, labels[:, None])[:, 0]
            of_all = log_probabilities.mean(-1)
            losses = -(1 - self.smoothing) * of_label - self.smoothing * of_all
            total = total + (weights * losses).sum()
        rows = per_process(len(student.image.embedding), local)
        return {self.kind: total / max(rows, 1) / len(classes.names)}

    def _class_weights(self, counts: Tensor) -> Tensor:
        """(C,) the weights of the classes' images, whose mean over all images is 1."""
        weights = counts.clamp(min=1).float() ** -self.balance
        return weights * (counts.sum() / (weights * counts).sum())
