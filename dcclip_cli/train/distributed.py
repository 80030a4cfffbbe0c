"""Communication between training processes: gather with gradients, averages, agreement.

Each process computes its loss from all embeddings; the gradient of an embedding is the sum over processes. Since the
processes' parameter gradients are averaged afterwards, a loss that every process computes in full, or whose mean over
processes is the full loss, gives each parameter the gradient of the one-process batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def processes_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", process_count()))


def process_index() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def gather(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes in the order of processes, which have `counts` of them."""
    if len(counts) == 1:
        return values
    padding = values.new_zeros(max(counts) - len(values), *values.shape[1:])
    padded = torch.cat([values, padding])
    everyone = _Gather.apply(padded) if values.is_floating_point() else _all_gather(padded)
    return torch.cat([rows[:count] for rows, count in zip(everyone.unbind(), counts, strict=True)])


def gather_numbers(numbers: Sequence[float]) -> list[list[float]]:
    """The numbers of each process, equally many. The hosts agree on them: no device is waited for."""
    if process_count() == 1 or not numbers:
        return [list(numbers)] * process_count()
    own = torch.tensor(numbers, dtype=torch.float64)
    everyone = [torch.empty_like(own) for _ in range(process_count())]
    distributed.all_gather(everyone, own, _hosts(distributed.group.WORLD))
    return [one.tolist() for one in everyone]


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a count over the processes, without a gradient."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / process_count()


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Average gradients over processes, as DistributedDataParallel does when the backward pass goes through it."""
    if process_count() == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= process_count()


def any_process(*flags: Tensor | bool, device: torch.device) -> list[bool]:
    """For each flag whether it is set in any process. Reads from the device once."""
    if process_count() == 1:
        return [bool(flag) for flag in flags]
    # torch.full, not torch.tensor: copying a number to the device would wait for all work there.
    together = torch.stack(
        [flag.int() if isinstance(flag, Tensor) else torch.full((), int(flag), device=device) for flag in flags]
    )
    distributed.all_reduce(together, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]


@lru_cache(maxsize=1)
def _hosts(world: Any) -> Any:
    """A group of all processes of `world` that exchanges tensors on the CPU."""
    return world if "gloo" in distributed.get_backend(world) else distributed.new_group(backend="gloo")


def _all_gather(values: Tensor) -> Tensor:
    """(P, ...) the values of each of P processes."""
    everyone = [torch.empty_like(values) for _ in range(process_count())]
    distributed.all_gather(everyone, values.contiguous())
    return torch.stack(everyone)


class _Gather(torch.autograd.Function):
    """All processes' values; the backward pass sums all processes' gradients of this one's.

    torch.distributed.nn.all_gather uses scatter in the backward pass on gloo, whose threads keep tensors of the graph
    and can keep a process from exiting (pytorch issue 56297).
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
