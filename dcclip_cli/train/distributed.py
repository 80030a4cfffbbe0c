"""How do the processes of one step come to see the whole batch, gradients included?

Each process works out its loss from all embeddings; the gradient of an embedding is the sum over processes. Since the
processes' parameter gradients are averaged afterwards, a loss that every process has in whole, or whose mean over
processes is the whole, gives each parameter the gradient of the one-process batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def gather(values: Tensor) -> Tensor:
    """The rows of all processes, in the processes' order; each may bring another count of them."""
    if process_count() == 1:
        return values
    counts = row_counts(values)
    padded = values.new_zeros(max(counts), *values.shape[1:])
    padded = torch.cat([values, padded[len(values) :]])
    everyone = _Gather.apply(padded) if values.is_floating_point() else _all_gather(padded)
    return torch.cat([rows[:count] for rows, count in zip(everyone.unbind(), counts, strict=True)])


def row_counts(values: Tensor) -> list[int]:
    """How many rows each process brings."""
    own = torch.tensor([len(values)], device=values.device)
    return _all_gather(own).flatten().tolist()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a count over the processes, without a gradient."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / process_count()


def widest(values: Tensor) -> int:
    """The largest second dimension that any process's `values` has."""
    width = torch.tensor(values.shape[1], device=values.device)
    if process_count() > 1:
        distributed.all_reduce(width, distributed.ReduceOp.MAX)
    return int(width)


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """What DistributedDataParallel would do to their gradients, had the backward pass gone through it."""
    if process_count() == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= process_count()


def any_process(here: bool, device: torch.device) -> bool:
    """Whether it is so in any process."""
    if process_count() == 1:
        return here
    flag = torch.tensor(int(here), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


def _all_gather(values: Tensor) -> Tensor:
    """(P, ...) what each of P processes has."""
    everyone = [torch.empty_like(values) for _ in range(process_count())]
    distributed.all_gather(everyone, values.contiguous())
    return torch.stack(everyone)


class _Gather(torch.autograd.Function):
    """All processes' values; backward sums what all processes want of this one's.

    torch's own, torch.distributed.nn.all_gather, goes back by scatter on gloo, whose threads hold tensors of the graph
    and can keep a process from ending (pytorch issue 56297).
    """

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _all_gather(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        [gradient] = gradients
        summed = gradient.contiguous()
        distributed.all_reduce(summed)
        return summed[process_index()]
