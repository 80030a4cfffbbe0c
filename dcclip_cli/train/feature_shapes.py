"""Shapes of a model's features: widths and map grids, found by running it on a blank image and a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image

from dcclip_cli.model.towers import ImageFeatures, TextFeatures, Towers
from dcclip_cli.train.losses.base import Loss, Widths
from dcclip_cli.train.losses.features import FeatureMapLoss


@dataclass(frozen=True)
class Grid:
    """The size of a feature map, in cells."""

    height: int
    width: int


def widths(towers: Towers, layers: Sequence[int] = ()) -> Widths:
    """The towers' widths, with those of further image layers."""
    image, text = _probe(towers, layers)
    others = {layer: image.layer(layer).shape[1] for layer in layers}
    return Widths(image.embedding.shape[-1], image.map.shape[1], text.tokens.shape[-1], others)


def map_grids(towers: Towers, layers: Sequence[int] = ()) -> dict[int, Grid]:
    """Height and width of the maps of the image tower's last layer, -1, and of further ones."""
    image, _ = _probe(towers, layers)
    return {layer: Grid(*image.layer(layer).shape[-2:]) for layer in (-1, *layers)}


def no_images(widths: Widths, layers: Sequence[int], device: torch.device) -> ImageFeatures:
    """The image features of a batch without images."""
    maps = {layer: torch.zeros(0, widths.layer(layer), 1, 1, device=device) for layer in (-1, *layers)}
    return ImageFeatures(torch.zeros(0, widths.embedding, device=device), maps[-1], maps)


def map_sizes(losses: Sequence[Loss], grids: Mapping[int, Grid]) -> dict[int, Grid]:
    """The teacher's layers whose maps are stored, with the finest grid on which a student's layer needs each."""
    sizes: dict[int, Grid] = {}
    for loss in losses:
        if isinstance(loss, FeatureMapLoss):
            for student, teacher in zip(loss.student_layers, loss.teacher_layers, strict=True):
                grid, before = grids[student], sizes.get(teacher, Grid(1, 1))
                sizes[teacher] = Grid(max(grid.height, before.height), max(grid.width, before.width))
    return sizes


def _probe(towers: Towers, layers: Sequence[int]) -> tuple[ImageFeatures, TextFeatures]:
    if next(towers.parameters()).is_meta:
        return _blank_probe(towers, tuple(layers))
    return _features(towers, layers)


@lru_cache(maxsize=32)
def _blank_probe(towers: Towers, layers: tuple[int, ...]) -> tuple[ImageFeatures, TextFeatures]:
    """The features of towers without weights, which take no memory: a pass takes a second of bookkeeping."""
    return _features(towers, layers)


def _features(towers: Towers, layers: Sequence[int]) -> tuple[ImageFeatures, TextFeatures]:
    device = next(towers.parameters()).device
    training = towers.training
    towers.eval()
    pixels = torch.from_numpy(towers.preprocess(Image.new("RGB", (64, 64), "white"))[None]).to(device)
    with torch.no_grad():
        image = towers.image_features(pixels, layers)
        text = towers.text_features(towers.tokenize(["猫 cat"]).to(device))
    towers.train(training)
    return image, text
