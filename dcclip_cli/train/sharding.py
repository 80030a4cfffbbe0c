"""FSDP2: each process holds a share of the weights, gradients and moments, and gathers a layer while it is used.

PyTorch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277), layer by layer; what is in no layer is one more group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcclip_cli.train.gather import average_gradients

if TYPE_CHECKING:
    from dcclip_cli.train.objective import Objective

_SMALLEST = 10_000  # parameters of a layer that is worth a message of its own


def shard(stage: Objective) -> None:
    """Split the stage's parameters over the processes, in place. Scalars, such as the temperature, stay whole."""
    from torch.distributed.fsdp import fully_shard

    stage.texts_by_length = False  # processes have to gather a layer equally often, however many texts each has
    model: Any = stage.student.model
    model.to(memory_format=torch.contiguous_format)  # the only one that can be split
    for layer in _layers(model):
        fully_shard(layer)
    fully_shard(stage, ignored_params={one for one in stage.parameters() if not one.ndim})


def _layers(model: Any) -> Iterator[nn.Module]:
    """The blocks of both towers: what a tower calls one after the other."""
    yield from model.text.transformer.resblocks
    for several in model.visual.trunk.children():
        if isinstance(several, nn.Sequential | nn.ModuleList):
            yield from (one for one in several if sum(each.numel() for each in one.parameters()) >= _SMALLEST)


def average_whole_gradients(stage: nn.Module) -> None:
    """Average the gradients of what stayed whole over the processes, as those of the shares are already."""
    average_gradients(parameter for parameter in stage.parameters() if not _is_share(parameter))


def whole(value: Tensor) -> Tensor:
    """A tensor as it was before it was split. All processes have to ask at once."""
    found: Tensor = value.full_tensor() if _is_share(value) else value  # type: ignore[attr-defined]
    return found


def share_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, where `like` is a share of one of the same shape."""
    if not _is_share(like) or _is_share(value) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    there: Any = like
    # Every process has the whole tensor, so none needs to send it.
    return distribute_tensor(value.to(like.device), there.device_mesh, there.placements, src_data_rank=None)


def join(stage: nn.Module) -> None:
    """Give every process whole parameters again, in modules that know nothing of shares, once training is over."""
    from torch.distributed.fsdp import FSDPModule

    for module in stage.modules():
        if isinstance(module, FSDPModule):  # a class that fully_shard derived from the module's own
            module.__class__ = type(module).__bases__[1]
        for name, parameter in module.named_parameters(recurse=False):
            if _is_share(parameter):
                setattr(module, name, nn.Parameter(whole(parameter.detach()), parameter.requires_grad))


def _is_share(value: Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)
