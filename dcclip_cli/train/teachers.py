"""Where a batch's teacher features come from: the teacher asked on every batch. What remembers is in teacher_cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from dcclip_cli.data.collator import Batch
from dcclip_cli.model.precision import finite
from dcclip_cli.model.towers import ImageFeatures, Towers
from dcclip_cli.train.losses.base import Loss, Outputs, TeacherLoss, Widths


class TeacherSource(Protocol):
    """Where a batch's teacher features come from."""

    def features(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, without gradients."""


class OnlineTeacher:
    """Runs the teacher on every batch. `place` says which of the batch's teacher pixels are its own."""

    def __init__(self, teacher: Towers, place: int, layers: Sequence[int], widths: Widths) -> None:
        self._teacher, self._place, self._layers, self._widths = teacher, place, tuple(layers), widths
        self._scale = torch.tensor(teacher.logit_scale)

    def features(self, batch: Batch) -> Outputs:
        pixels = batch.teacher_pixels[self._place]
        with self._teacher.as_teacher():
            if len(pixels):
                image = self._teacher.image_features(pixels, self._layers)
            else:
                image = no_images(self._widths, self._layers, pixels.device)
            texts = {
                name: self._teacher.text_features_by_length(self._teacher.tokenize(texts.captions).to(pixels.device))
                for name, texts in batch.texts.items()
            }
        finite(image.embedding.float().cpu().numpy(), self._teacher.name, "images")
        for text in texts.values():
            finite(text.embedding.float().cpu().numpy(), self._teacher.name, "texts")
        rows = {name: texts.image_index for name, texts in batch.texts.items()}
        return Outputs(image, texts, rows, self._scale.to(pixels.device))


def no_images(widths: Widths, layers: Sequence[int], device: torch.device) -> ImageFeatures:
    """The image features of a batch that has texts only."""
    maps = {layer: torch.zeros(0, widths.layer(layer), 1, 1, device=device) for layer in (-1, *layers)}
    return ImageFeatures(torch.zeros(0, widths.embedding, device=device), maps[-1], maps)


def layers_of(losses: Sequence[Loss], teacher: int) -> tuple[int, ...]:
    """The image layers of a teacher, the last apart, whose maps some loss needs."""
    return tuple(sorted({layer for loss in asking(losses, teacher) for layer in loss.further_teacher_maps}))


def asking(losses: Sequence[Loss], teacher: int) -> list[Loss]:
    """The losses that learn from this teacher."""
    return [loss for loss in losses if not isinstance(loss, TeacherLoss) or loss.teacher == teacher]
