"""Precision that `auto` chooses for two small towers, one convolutional and one a transformer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dcclip_cli.machine import keep_freed_memory
from dcclip_cli.model.precision import Choice, bf16_gain, choice_by_gain, choice_without_probe


def typical_choices(device: str) -> dict[str, dict[str, Choice]]:
    """The choice for inference and training, by kind of tower; timed for half a second on a CPU with native bf16."""
    kinds: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
        "convolutional": _convolutional,
        "transformer": _transformer,
    }
    uses = {"inference": False, "training": True}
    if known := choice_without_probe(device):
        return {use: dict.fromkeys(kinds, known) for use in uses}
    keep_freed_memory()  # as the commands do: without it fp32, whose blocks are larger, loses
    towers = {kind: make() for kind, make in kinds.items()}
    return {
        use: {kind: choice_by_gain(bf16_gain(_pass(*tower, training))) for kind, tower in towers.items()}
        for use, training in uses.items()
    }


def _pass(tower: nn.Module, shape: tuple[int, ...], training: bool) -> Callable[[], None]:
    """A function that runs `tower` on random numbers, with a backward pass if `training`."""
    batch = torch.rand(shape)
    if len(shape) == 4:
        batch = batch.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.set_grad_enabled(training):
            out = tower.train(training)(batch).float().square().mean()
            if training:
                out.backward()
                tower.zero_grad()

    run()
    return run


def _convolutional() -> tuple[nn.Module, tuple[int, ...]]:
    """Six MobileNet blocks and the shape of a batch; bf16 gains as much as in EfficientNet-Lite0."""

    def layers(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]

    tower = nn.Sequential(*layers(3, 32, 3, 2))
    for inputs, outputs, stride in ((32, 32, 2), (32, 64, 2), (64, 96, 1), (96, 128, 2), (128, 128, 1)):
        wide = 6 * inputs
        tower.extend([*layers(inputs, wide), *layers(wide, wide, 3, stride, wide), *layers(wide, outputs)[:2]])
    return tower.to(memory_format=torch.channels_last), (8, 3, 112, 112)  # type: ignore[call-overload]


def _transformer() -> tuple[nn.Module, tuple[int, ...]]:
    """Two layers of a text tower and the shape of a batch."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (16, 32, 256)
