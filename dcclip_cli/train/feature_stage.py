"""The module that stage 1 trains: student, adapters and losses, against a teacher that is asked or remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from dcclip_cli.data.batches import Batch
from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Towers
from dcclip_cli.train.losses import DistillLoss, Side, Widths


@dataclass(frozen=True)
class Grid:
    """The size of a feature map, in cells."""

    height: int
    width: int


class TeacherSource(Protocol):
    """Where a batch's teacher features come from."""

    def __call__(self, batch: Batch) -> Side:
        """The teacher's side of a batch, without gradients."""


class OnlineTeacher:
    """Runs the teacher on every batch. Its pixels are in the batch; it tokenises the captions itself."""

    def __init__(self, teacher: Towers) -> None:
        self._teacher = teacher

    def __call__(self, batch: Batch) -> Side:
        assert batch.teacher_pixels is not None
        device = batch.teacher_pixels.device
        with self._teacher.as_teacher():
            image = self._teacher.image_features(batch.teacher_pixels)
            texts = {
                language: self._teacher.text_features(self._teacher.tokenize(texts.captions).to(device))
                for language, texts in batch.texts.items()
            }
        return Side(image, texts, {language: texts.rows for language, texts in batch.texts.items()})


class FeatureStage(nn.Module):
    """Forward: a batch -> weighted loss terms by name."""

    def __init__(
        self,
        student: Towers,
        teacher: TeacherSource,
        losses: Sequence[DistillLoss],
        student_widths: Widths,
        teacher_widths: Widths,
        seed: int,
    ) -> None:
        super().__init__()
        self.student = student
        self._teacher, self._losses = teacher, losses
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapters: dict[str, nn.Module] = {}
            for loss in losses:
                for name, adapter in loss.adapters(student_widths, teacher_widths).items():
                    adapters.setdefault(name, adapter)
        self.adapters = nn.ModuleDict(adapters)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        teacher = self._teacher(batch)
        pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
        student = Side(
            self.student.image_features(pixels),
            {language: self.student.text_features(texts.tokens) for language, texts in batch.texts.items()},
            {language: texts.rows for language, texts in batch.texts.items()},
        )
        return {loss.kind: loss.weight * loss(student, teacher, self.adapters) for loss in self._losses}


def widths(towers: Towers) -> Widths:
    """The towers' widths, found by running a blank picture and a word through them."""
    image, text = _try(towers)
    return Widths(image.embedding.shape[-1], image.map.shape[1], text.tokens.shape[-1])


def map_grid(towers: Towers) -> Grid:
    """Height and width of the image tower's last map."""
    image, _ = _try(towers)
    return Grid(image.map.shape[-2], image.map.shape[-1])


def _try(towers: Towers) -> tuple[ImageFeatures, TextFeatures]:
    device = next(towers.parameters()).device
    training = towers.training
    towers.eval()
    pixels = torch.from_numpy(towers.preprocess(Image.new("RGB", (64, 64), "white"))[None]).to(device)
    with torch.no_grad():
        image = towers.image_features(pixels)
        text = towers.text_features(towers.tokenize(["猫 cat"]).to(device))
    towers.train(training)
    return image, text
