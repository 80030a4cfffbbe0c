"""The optimizer: AdamW, SGD or Muon, with learning rates of their own for towers, projections and temperature."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm.optim
import torch
from timm.optim import muon
from torch import nn

from dcclip_cli.train.options import OptimizerOptions

_NEWTON_SCHULZ = muon.zeropower_via_newtonschulz
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Muon(timm.optim.Muon):
    """timm's Muon, its Newton-Schulz iteration in a precision of choice.

    timm's function takes one, its optimizer always leaves it at bf16, which a CPU without native bf16 computes 20 to
    50 times more slowly than fp32.
    """

    def __init__(self, parameters: Any, newton_schulz: torch.dtype, **options: Any) -> None:
        super().__init__(parameters, **options)
        self._newton_schulz = newton_schulz

    def step(self, closure: Any = None) -> Any:
        muon.zeropower_via_newtonschulz = partial(_NEWTON_SCHULZ, dtype=self._newton_schulz)
        try:
            return super().step(closure)
        finally:
            muon.zeropower_via_newtonschulz = _NEWTON_SCHULZ


def make_optimizer(stage: nn.Module, chosen: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices only, and rates of their own for towers, projections, temperature.

    Every group has its peak rate as `peak_lr`. `chosen.newton_schulz` is fp32 or bf16 by now.
    """
    depths = _depths_from_the_top(stage) if chosen.layer_decay < 1 else {}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in stage.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = chosen.weight_decay if parameter.ndim > 1 and "positional_embedding" not in name else 0.0
        scale = _scale(name, chosen) * chosen.layer_decay ** depths.get(name, 0)
        # A table of vectors is a matrix in shape only: its rows are learnt one by one.
        groups.setdefault((chosen.lr * scale, decay, "_embedding" in name), []).append(parameter)
    parameters: list[dict[str, Any]] = [
        {"params": members, "lr": lr, "peak_lr": lr, "weight_decay": decay, "use_fallback": is_table}
        for (lr, decay, is_table), members in groups.items()
    ]
    if chosen.kind == "adamw":
        return torch.optim.AdamW(parameters, betas=chosen.betas, eps=chosen.eps)
    if chosen.kind == "sgd":
        return torch.optim.SGD(parameters, momentum=chosen.momentum)
    return Muon(
        parameters,
        _DTYPES[chosen.newton_schulz],
        momentum=chosen.momentum,
        nesterov=True,
        betas=chosen.betas,
        fallback_lr_scale=(chosen.other_lr or chosen.lr) / chosen.lr,
    )


def _scale(name: str, chosen: OptimizerOptions) -> float:
    if "logit_" in name:
        return chosen.temperature_lr_scale
    # The projections into the shared space are not part of what was pretrained.
    if ".head." in name or "classifier" in name or "text_projection" in name:
        return chosen.projection_lr_scale
    if ".visual." in name:
        return chosen.image_lr_scale
    return chosen.text_lr_scale if ".text." in name else 1.0


def _depths_from_the_top(stage: nn.Module) -> dict[str, int]:
    """How many layers lie above each parameter of the two towers; what is not in them has 0."""
    from timm.models import group_parameters

    model: Any = stage.student.model  # type: ignore[union-attr]
    depths: dict[str, int] = {}
    trunk = getattr(model.visual, "trunk", None)
    if trunk is not None:
        layers = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
        heads = {name for name in layers if "classifier" in name or name.startswith(("head.", "fc."))}
        top = max(layer for name, layer in layers.items() if name not in heads)
        for name, layer in layers.items():
            depths[f"student.model.visual.trunk.{name}"] = max(0, top + 1 - layer) if name not in heads else 0
    blocks = len(model.text.transformer.resblocks)
    for name, _ in model.text.named_parameters():
        parts = name.split(".")
        if "resblocks" in parts:
            depth = blocks - int(parts[parts.index("resblocks") + 1])
        else:
            depth = blocks + 1 if "_embedding" in name else 0
        depths[f"student.model.text.{name}"] = depth
    return depths
