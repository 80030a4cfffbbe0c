"""Optimizer (AdamW, SGD or Muon) with parameter groups, learning-rate schedule, and EMA of the
weights.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import timm.optim
import torch
from timm.optim import muon
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcclip_cli.train.lora import is_projection
from dcclip_cli.train.losses.base import Tower
from dcclip_cli.train.options import OptimizerOptions, Schedule

_NEWTON_SCHULZ = muon.zeropower_via_newtonschulz
_BETAS = (0.9, 0.98)  # of AdamW
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Muon(timm.optim.Muon):
    """timm's Muon with a chosen precision of the Newton-Schulz iteration.

    timm's function takes one, but its optimizer always uses bf16, which is 20 to 50 times slower
    than fp32 on a CPU without native bf16.
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


def learning_rate_factor(
    step: int, warmup_steps: int, steps: int, schedule: Schedule = "cosine", cooldown_steps: int = 0
) -> float:
    """The factor in (0, 1] of the peak rate at a step, by open_clip's three schedules.

    Linear warm-up from 0, then `cosine`: cosine decay to 0; `constant`: the peak rate;
    `constant-with-cooldown`: the peak rate, and linear decay to 0 in the last `cooldown_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
    if schedule == "constant-with-cooldown":
        return min(1.0, (steps - step) / (cooldown_steps + 1))
    return 1.0


def make_optimizer(task: nn.Module, chosen: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimizer of a task's parameters: weight decay on matrices only, learning-rate
    multipliers for the towers.

    Every group has its peak rate as `peak_lr`. `chosen.newton_schulz` must be fp32 or bf16.
    """
    depths = _depths_from_the_top(task) if chosen.layer_decay < 1 else {}
    positions = {  # by open_clip's and timm's rules: position embeddings and biases, class tokens
        f"{prefix}.{name}"
        for prefix, module in task.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = chosen.weight_decay if parameter.ndim > 1 and name not in positions else 0.0
        scale = rate_scale(name, chosen) * chosen.layer_decay ** depths.get(name, 0)
        # Embedding tables and positions are matrices in shape only.
        is_table = name in positions or "token_embedding" in name.split(".")
        by_adamw = chosen.kind == "muon" and (is_table or not muon._is_suitable_for_muon(parameter))
        groups.setdefault((chosen.lr * scale, decay, by_adamw), []).append(parameter)
    parameters: list[dict[str, Any]] = []
    for (lr, decay, by_adamw), members in groups.items():
        # With `nesterov`, timm would use NAdamW; and its eps is otherwise that of Muon's division
        # by the norm.
        of_adamw = {"use_fallback": True, "nesterov": False, "eps": chosen.eps}
        group = {"params": members, "lr": lr, "peak_lr": lr, "weight_decay": decay}
        parameters.append(group | (of_adamw if by_adamw else {}))
    on_gpu = any(parameter.is_cuda for members in groups.values() for parameter in members)
    if chosen.kind == "adamw":
        return torch.optim.AdamW(parameters, betas=_BETAS, eps=chosen.eps, fused=on_gpu or None)
    if chosen.kind == "sgd":
        return torch.optim.SGD(parameters, momentum=chosen.momentum, fused=on_gpu or None)
    return Muon(
        parameters,
        _DTYPES[chosen.newton_schulz],
        momentum=chosen.momentum,
        nesterov=True,
        betas=_BETAS,
        fallback_lr_scale=(chosen.other_lr or chosen.lr) / chosen.lr,
    )


def make_ema(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the model's weights and batch norm statistics, if a decay
    is given.
    """
    return _Average(model, decay) if decay else None


class _Average(AveragedModel):
    """torch's average without its counter on a GPU: to copy it there, each step would wait for the
    GPU.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)

    def update_parameters(self, model: nn.Module) -> None:
        if not int(self.n_averaged):
            super().update_parameters(model)
            return
        # An average of equal numbers may differ from them: it makes 0.0 of -0.0. What is frozen
        # was copied before.
        frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
        frozen |= {
            id(buffer)
            for module in model.modules()
            if not module.training
            for buffer in module.buffers(False)
        }
        averaged, current = (
            chain(module.parameters(), module.buffers()) for module in (self.module, model)
        )
        by_type: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for average, value in zip(averaged, current, strict=True):
            if id(value) not in frozen:
                by_type.setdefault(value.dtype, []).append((average.detach(), value.detach()))
        for pairs in by_type.values():
            averages, values = zip(*pairs, strict=True)
            if averages[0].is_floating_point():
                self._average(averages, values, self.n_averaged)
            else:  # a count: the average of equal ones is rounded to one less by some decays
                torch._foreach_copy_(averages, values)
        self.n_averaged += 1


@contextmanager
def ema_weights(model: nn.Module, ema: AveragedModel | None) -> Iterator[None]:
    """The model has the EMA's weights while the block runs."""
    if ema is None:
        yield
        return
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(ema.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(weights)


def rate_scale(name: str, chosen: OptimizerOptions) -> float:
    """The learning-rate multiplier of a task's parameter; 0: it is not trained."""
    if is_projection(name):
        return 1.0
    return {"image": chosen.image_lr_scale, "text": chosen.text_lr_scale, None: 1.0}[tower_of(name)]


def tower_of(name: str) -> Tower | None:
    """The tower that a task's parameter belongs to; None for adapters, the temperature and the
    bias.
    """
    if "logit_" in name:
        return None
    if ".visual." in name:
        return "image"
    return "text" if ".text." in name else None


def clip_gradients(task: nn.Module, max_norm: float, by_tower: bool = False) -> torch.Tensor:
    """Scale gradients down to a norm of `max_norm`, with `by_tower` those of each tower apart;
    returns the norm.

    Without `by_tower`, a spike in one tower also shortens the step of the other. Adapters are a
    group of their own.
    """
    groups: dict[Tower | None, list[nn.Parameter]] = {}
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(tower_of(name) if by_tower else None, []).append(parameter)
    norms = [nn.utils.clip_grad_norm_(group, max_norm) for group in groups.values()]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def _depths_from_the_top(task: nn.Module) -> dict[str, int]:
    """The number of layers above each parameter of the two towers; 0 for all others."""
    from timm.models import group_parameters

    model: Any = task.student.model  # type: ignore[union-attr]
    depths: dict[str, int] = {}
    trunk = getattr(model.visual, "trunk", None)
    if trunk is not None:
        layers = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
        heads = {
            name for name in layers if "classifier" in name or name.startswith(("head.", "fc."))
        }
        top = max(layer for name, layer in layers.items() if name not in heads)
        for name, layer in layers.items():
            depths[f"student.model.visual.trunk.{name}"] = (
                max(0, top + 1 - layer) if name not in heads else 0
            )
    blocks = len(model.text.transformer.resblocks)
    for name, _ in model.text.named_parameters():
        parts = name.split(".")
        if "resblocks" in parts:
            depth = blocks - int(parts[parts.index("resblocks") + 1])
        else:
            depth = blocks + 1 if "_embedding" in name else 0
        depths[f"student.model.text.{name}"] = depth
    return depths
