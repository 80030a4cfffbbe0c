"""Estimates of the disk space that a training stage takes: teacher cache, checkpoints and the saved model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dcclip_cli.data.preview import Preview
from dcclip_cli.model.available import TeacherWidths
from dcclip_cli.train.losses.base import Loss
from dcclip_cli.train.losses.features import FeatureMapLoss, TokenFeaturesLoss
from dcclip_cli.train.options import TrainOptions

_FP16, _FP32 = 2, 4
_BYTES_PER_TOKEN = 4  # of a caption in UTF-8: about a token for each English word and Chinese character
_MOST_TOKENS = 77


def teacher_cache_bytes(
    widths: TeacherWidths, losses: tuple[Loss, ...], options: TrainOptions, data: Mapping[str, Preview], image_size: int
) -> float:
    """Bytes of a teacher's features that `losses` need, for data by kind (train, images, texts).

    Rows are counted once for each different augmented image and caption that the stage uses.
    """
    languages = options.captions.languages
    image, text = float(widths.embedding), float(widths.embedding)
    for cells in _cells(losses, image_size).values():
        image += cells * widths.image_map
    if any(isinstance(loss, TokenFeaturesLoss) for loss in losses):
        length = max((one.bytes_per_caption(languages) for one in data.values()), default=0.0)
        text += widths.text_tokens * min(_MOST_TOKENS, 2 + length / _BYTES_PER_TOKEN)
    total = 0.0
    for kind, one in data.items():
        drawn = options.steps * options.batch_size if options.steps else math.inf
        captions = min(one.samples, drawn) * one.captions_per_sample(languages)
        images = 0 if kind == "texts" else min(one.samples * options.augmentations, drawn)
        total += _FP16 * (images * image + captions * text)
    return total


def checkpoint_bytes(parameters: int, options: TrainOptions) -> int:
    """Bytes of a stage's folder: two checkpoints while one replaces the other, the best weights, the saved model."""
    copies = 2 * (3 + (options.ema is not None)) + (options.keep == "best") + 1
    return _FP32 * parameters * copies


def _cells(losses: tuple[Loss, ...], image_size: int) -> dict[int, int]:
    """The cells of the grid on which the map of each of the teacher's layers is stored.

    It is that of the student's layer: a convolutional network halves the side from stage to stage, down to a 32nd.
    """
    cells: dict[int, int] = {}
    for loss in losses:
        if isinstance(loss, FeatureMapLoss):
            for student, teacher in zip(loss.student_layers, loss.teacher_layers, strict=True):
                halvings = min(5, student + 1 if student >= 0 else 6 + student)
                cells[teacher] = max(cells.get(teacher, 1), math.ceil(image_size / 2 ** max(1, halvings)) ** 2)
    return cells
