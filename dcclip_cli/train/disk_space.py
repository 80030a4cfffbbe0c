"""Estimates of a training stage's work for its teachers and of its disk space: teacher cache, checkpoints and model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dcclip_cli.data.preview import Preview
from dcclip_cli.train.feature_shapes import Grid, map_sizes
from dcclip_cli.train.losses.base import Loss, Widths
from dcclip_cli.train.losses.features import TokenFeaturesLoss
from dcclip_cli.train.options import TrainOptions

_FP16, _FP32 = 2, 4
_BYTES_PER_TOKEN = 4  # of a caption in UTF-8: about a token for each English word and Chinese character
_MOST_TOKENS = 77


@dataclass(frozen=True)
class Rows:
    """How many different augmented images and captions a stage uses, about."""

    images: int
    texts: int


def rows_used(options: TrainOptions, data: Mapping[str, Preview], sizes: Mapping[str, int], steps: int) -> Rows:
    """The different images and captions of a run, for data by kind (pairs, images, texts) and `sizes` per step."""
    images = texts = 0.0
    for kind, one in data.items():
        drawn = steps * sizes[kind]
        if kind != "texts":
            images += min(one.samples * options.augmentations, drawn)
        texts += min(one.samples, drawn) * _captions_used(one, options, drawn / max(1, one.samples))
    return Rows(round(images), round(texts))


def _captions_used(one: Preview, options: TrainOptions, epochs: float) -> float:
    """Mean number of different captions of a sample that so many epochs use."""
    languages, chosen = options.captions.languages, options.captions
    used = 0.0
    for several in one.captions:
        for language in languages:
            count, times = len(several[language]), max(1.0, epochs)
            most = (2 if chosen.second_caption else 1) * times
            used += min(count, 1 if chosen.first == 1 and not chosen.second_caption else most)
    return used / max(1, len(one.captions))


def teacher_cache_bytes(
    widths: Widths,
    losses: Sequence[Loss],
    options: TrainOptions,
    data: Mapping[str, Preview],
    grids: Mapping[int, Grid],
    rows: Rows,
) -> float:
    """Bytes of a teacher's features that `losses` need; `grids` are those of the student's maps, by layer."""
    image, text = float(widths.embedding), float(widths.embedding)
    for layer, grid in map_sizes(losses, grids).items():
        image += grid.height * grid.width * widths.layer(layer)
    if any(isinstance(loss, TokenFeaturesLoss) for loss in losses):
        length = max((one.bytes_per_caption(options.captions.languages) for one in data.values()), default=0.0)
        text += widths.text_tokens * min(_MOST_TOKENS, 2 + length / _BYTES_PER_TOKEN)
    return _FP16 * (rows.images * image + rows.texts * text)


def checkpoint_bytes(parameters: int, options: TrainOptions) -> int:
    """Bytes of a stage's folder: two checkpoints while one replaces the other, the best weights, the saved model."""
    copies = 2 * (3 + (options.ema is not None)) + (options.keep == "best") + 1
    return _FP32 * parameters * copies


def steps_of(options: TrainOptions, data: Mapping[str, Preview], sizes: Mapping[str, int]) -> int:
    """Training steps of a run, about: an epoch is one of the first kind of data."""
    if options.steps or not data:
        return options.steps or 0
    kind, first = next(iter(data.items()))
    return max(1, math.ceil((options.epochs or 0) * (first.samples // sizes[kind])))
